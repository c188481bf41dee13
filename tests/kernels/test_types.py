"""Types of outputs and of gradients for arguments in bfloat16, traced and not compiled."""

import functools

import jax
import jax.numpy as jnp
import pytest

from mc_jax.kernels.block_read import block_read
from mc_jax.kernels.deep_read import deep_read
from mc_jax.kernels.deep_write import deep_write
from mc_jax.kernels.gates import Router, Scores
from mc_jax.kernels.level_read import level_read
from mc_jax.kernels.linear_read import linear_read
from mc_jax.kernels.linear_write import linear_write
from mc_jax.memory.deep import Steps
from mc_jax.memory.linear import Writes
from mc_jax.memory.network import DeepParams, MlpNetwork, MlpWeights, NormParams
from mc_jax.memory.rule import get_rule

BF16, F32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
HEADS, LENGTH, HEAD_DIM, HIDDEN = 2, 48, 16, 32
# So many memories that XLA reads selected ones alone.
TOKENS, SEGMENT, MEMORIES = 256, 8, 31
IMPLEMENTATIONS = ("reference", "xla", "pallas_interpret")


def array(*shape, dtype=BF16):
    return jax.ShapeDtypeStruct(shape, dtype)


Q, QKV = array(HEAD_DIM, TOKENS), [array(HEADS, LENGTH, HEAD_DIM)] * 3
MATRICES = array(MEMORIES, HEAD_DIM, HEAD_DIM)
MLPS = MlpWeights(array(MEMORIES, HEAD_DIM, HIDDEN), array(MEMORIES, HIDDEN, HEAD_DIM))
ONLINE = array(TOKENS, dtype=F32)
ROUTERS = {
    "residual": None,
    "router": Router(Q, ONLINE, array(MEMORIES, HEAD_DIM)),
    "scores": Scores(ONLINE, array(MEMORIES, TOKENS)),
}

every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
# Only XLA and the reference take scores.
every_gate = pytest.mark.parametrize(
    "implementation, router, top_k",
    [
        (implementation, router, top_k)
        for implementation in IMPLEMENTATIONS
        for router in ROUTERS
        for top_k in ([1, None] if ROUTERS[router] else [None])
        if (implementation, router) != ("pallas_interpret", "scores")
    ],
)


def types(tree):
    return jax.tree.map(lambda x: x.dtype, tree)


def output_types(op, *args):
    """Types of what `op` gives, if gradients have those of their arguments."""

    def run(*args):
        outputs, back = jax.vjp(op, *args)
        return outputs, back(outputs)

    outputs, gradients = jax.eval_shape(run, *args)
    assert types(gradients) == types(args)
    return types(outputs)


def assert_written(found, ends=F32):
    """Features are typed as queries, the final state is in float32."""
    assert found.features == BF16
    assert set(jax.tree.leaves(found.ends)) == {ends}
    assert set(jax.tree.leaves(found.final)) == {F32}


@every_gate
def test_linear_read(implementation, router, top_k):
    options = {"segment_len": SEGMENT, "top_k": top_k, "implementation": implementation}
    read = functools.partial(linear_read, **options)
    assert output_types(read, Q, MATRICES, ROUTERS[router]) == (BF16, F32)


@every_gate
def test_deep_read(implementation, router, top_k):
    options = {"segment_len": SEGMENT, "top_k": top_k, "implementation": implementation}
    read = functools.partial(deep_read, activation="gelu", mem_norm="layer", **options)
    assert output_types(read, Q, MLPS, ROUTERS[router]) == (BF16, F32)


@every_implementation
@pytest.mark.parametrize(
    "weights, network",
    [(MATRICES, None), (MLPS, MlpNetwork("gelu", "layer"))],
    ids=["matrix", "mlp"],
)
def test_block_read(weights, network, implementation):
    memory, gate = jnp.zeros((2, TOKENS // 128), jnp.int32), array(2, TOKENS)

    def read(x, weights, gate):
        return block_read(x, weights, memory, gate, network=network, implementation=implementation)

    assert output_types(read, Q, weights, gate) == F32


@every_implementation
def test_level_read(implementation):
    levels = [array(TOKENS // 128, HEAD_DIM, HEAD_DIM)] * 3
    read = functools.partial(level_read, implementation=implementation)
    assert output_types(read, Q, levels, array(3, TOKENS)) == F32


@every_implementation
@pytest.mark.parametrize("write_mode", ["independent", "checkpoint"])
def test_linear_write(write_mode, implementation):
    options = {"write_mode": write_mode, "implementation": implementation}
    write = functools.partial(linear_write, segment_len=32, **options)
    writes = Writes(array(HEADS, LENGTH), array(HEADS, 2, LENGTH))
    assert_written(output_types(write, *QKV, writes))


@every_implementation
@pytest.mark.parametrize("write_mode", ["independent", "checkpoint"])
@pytest.mark.parametrize("rule, ends", [("titans", None), ("dla", None), ("dla", BF16)])
def test_deep_write(rule, ends, write_mode, implementation):
    write = functools.partial(
        deep_write,
        get_rule(rule),
        segment_len=32,
        chunk_len=16,
        write_mode=write_mode,
        ends_dtype=ends,
        implementation=implementation,
    )
    norm = NormParams(*[array(HEADS, HEAD_DIM)] * 2)
    params = DeepParams(array(HEADS, HEAD_DIM, HIDDEN), array(HEADS, HIDDEN, HEAD_DIM), norm)
    gate = array(HEADS, LENGTH)
    steps = Steps(gate, gate, *([gate] * 2 if rule == "titans" else [None] * 2))
    assert_written(output_types(write, params, *QKV, steps), ends or F32)
