"""Which implementation runs, what is refused, and what a call costs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.extend.core import jaxprs_in_params

from mc_jax.errors import InputError
from mc_jax.kernels.deep_write.api import deep_write, unsupported
from mc_jax.kernels.deep_write.chunk import Affine, ChunkState, Memory, Network, Tokens, chunk_step
from mc_jax.kernels.deep_write.config import (
    Call,
    Config,
    backward_cost,
    chunk_flops,
    default_config,
    forward_cost,
)
from mc_jax.memory.rule import get_rule
from tests.kernels.deep_write.cases import Case, arguments, assert_close, rule_of

CASE = Case("titans", "layer", "independent", 32, 16, 32, 48)
CALL = Call(
    heads=8,
    length=2048,
    head_dim=128,
    hidden=512,
    segment_len=256,
    chunk_len=64,
    independent=True,
    titans=True,
    activation="gelu",
    layer_norm=True,
    dtype=jnp.dtype(jnp.bfloat16),
    ends_dtype=jnp.dtype(jnp.bfloat16),
)


def write(mem_norm="layer", dtype=jnp.float32, **options):
    case = dataclasses.replace(CASE, mem_norm=mem_norm, dtype=dtype)
    options = {"segment_len": 32, "chunk_len": 16, **options}
    return deep_write(rule_of(case), *arguments(case), **options)


def test_without_a_tpu_xla_is_picked():
    assert_close(write(), write(implementation="xla"), 0)


def test_ends_in_another_type():
    exact, rounded = write(implementation="xla"), write(ends_dtype=jnp.bfloat16)
    assert_close(rounded.ends, jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact.ends), 0)
    assert_close(rounded.final, exact.final, 0)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"implementation": "pallas"}, "runs on a TPU"),
        ({"implementation": "pallas_interpret", "mem_norm": "weight_l2"}, "weight_l2"),
        ({"implementation": "pallas_interpret", "dtype": jnp.float16}, "float16"),
        ({"implementation": "pallas_interpret", "chunk_len": 8}, "multiple of 16"),
        ({"implementation": "triton"}, "reference | xla | pallas"),
        ({"write_mode": "forever"}, "independent | checkpoint"),
        ({"segment_len": 40}, "multiple of chunk_len=16"),
        ({"segment_len": 0}, "multiple of chunk_len=16"),
        ({"chunk_len": 0}, "at least 1"),
        ({"implementation": "pallas_interpret", "config": Config(3, 1)}, "a divisor of 2"),
        ({"implementation": "pallas_interpret", "config": Config(1, 4)}, "a divisor of 2"),
    ],
)
def test_refusals(options, reason):
    with pytest.raises(InputError) as error:
        write(**options)
    assert reason in str(error.value)


@pytest.mark.parametrize("field", ["q", "k", "v", "params.w2", "steps.eta"])
def test_shapes_that_do_not_go_together(field):
    params, q, k, v, steps = arguments(CASE)
    values = {"q": q, "k": k, "v": v, "params.w2": params.w2, "steps.eta": steps.eta}
    values[field] = values[field][..., :-1]
    params = params._replace(w2=values["params.w2"])
    steps = steps._replace(eta=values["steps.eta"])
    tokens = (values[x] for x in "qkv")
    with pytest.raises(InputError, match=r"allowed: \("):
        deep_write(rule_of(CASE), params, *tokens, steps, segment_len=32, chunk_len=16)


def test_shapes_that_the_kernel_does_not_take():
    rule = get_rule("titans")
    assert unsupported(rule, CALL, any_device=True) is None
    odd = dataclasses.replace(CALL, head_dim=100)
    assert "multiple of 8" in unsupported(rule, odd, any_device=True)
    huge = dataclasses.replace(CALL, head_dim=1024, hidden=4096)
    assert "VMEM" in unsupported(rule, huge, any_device=True)
    # Of float32 more lies between instructions.
    float32 = dataclasses.replace(CALL, titans=False, dtype=jnp.dtype(jnp.float32))
    large = dataclasses.replace(float32, head_dim=512, hidden=2048)
    assert "VMEM" in unsupported(rule, large, any_device=True)
    with pytest.raises(InputError):
        Config(0, 1)


@pytest.mark.parametrize("chip", ["TPU_V5E", "TPU_V5P", "TPU_V6E"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("segment_len", [256, 4096])
def test_default_config_fits(chip, head_dim, segment_len):
    info = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion[chip], 2 if chip == "TPU_V5P" else 1)
    call = dataclasses.replace(
        CALL, length=8192, head_dim=head_dim, hidden=4 * head_dim, segment_len=segment_len
    )
    config = default_config(call, info)
    config.check(call)
    assert call.heads // config.heads % info.num_cores == 0
    for cost in (forward_cost(call, config, True), backward_cost(call, config)):
        assert cost.vmem_bytes < 0.7 * info.vmem_capacity_bytes


def test_long_chunks_leave_room_for_temporaries():
    """Four heads at a time fill 0.6 of VMEM with blocks, and 57.5 of 56 MB in all."""
    info = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V5P, 2)
    call = dataclasses.replace(CALL, segment_len=512, chunk_len=128)
    assert backward_cost(call, Config(4, 2)).vmem_bytes < 0.6 * info.vmem_capacity_bytes
    assert default_config(call, info) == Config(2, 4)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("titans", [False, True])
def test_flops_are_those_of_the_products(titans, layer_norm):
    d, hidden, chunk = 16, 48, 32
    call = dataclasses.replace(
        CALL, head_dim=d, hidden=hidden, chunk_len=chunk, titans=titans, layer_norm=layer_norm
    )
    memory = Memory(jnp.zeros((1, d, hidden)), jnp.zeros((1, d, hidden)))
    row, x = jnp.zeros((1, 1, d)), jnp.zeros((1, chunk, d))
    arguments = (
        Network("gelu", jnp.dtype(jnp.float32)),
        Affine(row, row) if layer_norm else None,
        ChunkState(memory, memory if titans else None),
        Tokens(x, x, x, jnp.zeros((1, call.gates, chunk))),
    )
    jaxpr = jax.make_jaxpr(chunk_step, static_argnums=0)(*arguments)
    of_gates = 2 * chunk**3 if titans else 0
    assert _dot_flops(jaxpr.jaxpr) == chunk_flops(call) + of_gates


def _dot_flops(jaxpr):
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            ((axis,), _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.invars[0].aval.shape[axis] * eqn.outvars[0].aval.size
        for inner in jaxprs_in_params(eqn.params):
            total += _dot_flops(inner)
    return total
