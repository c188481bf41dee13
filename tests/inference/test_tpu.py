"""The decoding loop compiled for a TPU: memories stay where they lie, and are not copied."""

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from mc_jax.caching import store
from mc_jax.inference import make_room, prefill
from mc_jax.inference.generation import _decode_block, _Decoding
from mc_jax.inference.sampling import Sampling
from mc_jax.model.cache import map_memories
from tests.kernels.tpu import device, needs_libtpu
from tests.model import tiny

HOST = jax.memory.Space.Host


@needs_libtpu
@pytest.mark.parametrize(
    ("aggregation", "form", "host"),
    [("ssc", "bfloat16", True), ("ssc", "float32", False), ("grm", "int8", False)],
)
def test_no_copy_of_the_memories(aggregation, form, host):
    config = tiny.config(dim=256, dtype="bfloat16", memory={"aggregation": aggregation})
    params = tiny.init(config)
    logits, cache = prefill(config, params, tiny.tokens(1, 16))
    cache = map_memories(config, make_room(config, cache, 1024), lambda x: store(x, form, host))
    state = _Decoding(np.int32(0), logits, np.zeros(1, bool), cache)
    rest = jax.vmap(jax.random.key)(np.arange(1)), np.int32(32), np.int32(-1)
    on_host = jax.tree.map(lambda x: jax.typeof(x).memory_space == HOST, state)

    def shape(x, on_host=False):
        kind = "pinned_host" if on_host else "device"
        sharding = SingleDeviceSharding(device("v5e"), memory_kind=kind)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    def decode(params, state, *rest):
        state = jax.tree.map(lambda x, h: jax.device_put(x, HOST) if h else x, state, on_host)
        return _decode_block.__wrapped__(config, Sampling(), params, state, *rest)

    shapes = jax.tree.map(shape, params), jax.tree.map(shape, state, on_host)
    compiled = (
        jax.jit(decode, donate_argnums=1).lower(*shapes, *jax.tree.map(shape, rest)).compile()
    )
    memory = compiled.memory_analysis()
    kept = sum(x.nbytes for x in jax.tree.leaves(cache.layers[0][0].memory.memories))
    assert kept >= 2**23
    # What is not copied is neither a temporary nor an output that aliases no input.
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert memory.temp_size_in_bytes + new < kept / 2
    assert memory.host_temp_size_in_bytes == 0
    assert memory.host_alias_size_in_bytes == (kept if host else 0)
