"""The kernels compiled for TPUs that are not here."""

import functools

import jax
import jax.numpy as jnp
import pytest

from mc_jax.kernels.deep_write.api import deep_write
from tests.kernels.deep_write.cases import Case, arguments, rule_of
from tests.kernels.tpu import TOPOLOGIES, compile_for, needs_libtpu
from tests.rare import named

CASES = {
    "bfloat16": Case(
        "titans", "layer", "independent", 128, 64, 256, 1024, dtype=jnp.bfloat16, heads=4
    ),
    "float32": Case("dla", "none", "checkpoint", 96, 16, 64, 150, dtype=jnp.float32, heads=2),
    # What lies between instructions is as much as the blocks; of float32, products of three parts.
    "bfloat16, long chunks": Case(
        "titans", "layer", "independent", 128, 128, 512, 1024, dtype=jnp.bfloat16, heads=8
    ),
    "float32, long chunks": Case("dla", "layer", "independent", 256, 128, 256, 512, heads=4),
}
RARE = ("bfloat16, long chunks", "float32, long chunks")


@needs_libtpu
@pytest.mark.parametrize("chip", TOPOLOGIES)
@pytest.mark.parametrize("case", named(CASES, rare=RARE))
def test_forward_and_backward_compile(chip, case):
    write = functools.partial(
        deep_write,
        rule_of(case),
        segment_len=case.segment_len,
        chunk_len=case.chunk_len,
        write_mode=case.write_mode,
        implementation="pallas",
    )

    def gradient(*args):
        written, pull = jax.vjp(write, *args)
        return pull(written)

    text = compile_for(chip, gradient, *arguments(case)).as_text()
    assert "deep_write" in text and "deep_write_backward" in text
