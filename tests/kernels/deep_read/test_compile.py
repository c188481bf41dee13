"""The kernels compiled for TPUs that are not here, and what a call costs there."""

import jax
import jax.numpy as jnp
import pytest

from mc_jax.kernels.deep_read import deep_read
from tests.kernels.deep_read.cases import Case, inputs
from tests.kernels.tpu import TOPOLOGIES, compile_for, needs_libtpu, on_every_chip

CASES = {
    "ssc": Case(128, 2048, 16, 128, top_k=4, dtype=jnp.bfloat16, config=None),
    "ssc by columns": Case(128, 2048, 64, 32, top_k=4, dtype=jnp.bfloat16, config=None),
    "ssc by columns, float32": Case(
        64, 1024, 100, 8, top_k=1, mem_norm="none", hidden=512, config=None
    ),
    "float32": Case(64, 600, 130, 16, mem_norm="none", config=None),
    "odd widths": Case(96, 384, 15, 64, dtype=jnp.bfloat16, hidden=200, routed=False, config=None),
    "several stacks": Case(256, 512, 64, 8, dtype=jnp.bfloat16, config=None),
}


@needs_libtpu
@on_every_chip(CASES, rare=("several stacks", "ssc by columns"))
def test_forward_and_backward_compile(chip, case):
    args = jax.eval_shape(lambda: inputs(case)[0])

    def gradient(*args):
        outputs, back = jax.vjp(lambda *args: deep_read(*args, **case.options), *args)
        return back(outputs)

    heads = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), args)
    text = compile_for(chip, jax.vmap(gradient), *heads).as_text()
    assert "deep_read_forward" in text and "deep_read_backward" in text


@needs_libtpu
@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_nothing_of_size_tokens_by_memories_is_in_hbm(chip):
    case = Case(128, 2048, 64, 32, top_k=4, dtype=jnp.bfloat16, config=None)
    args = jax.eval_shape(lambda: inputs(case)[0])
    compiled = compile_for(chip, lambda *args: deep_read(*args, **case.options), *args)
    assert "deep_read_forward" in compiled.as_text()
    gates = case.tokens * case.memories * 2
    assert compiled.memory_analysis().temp_size_in_bytes < gates / 4
