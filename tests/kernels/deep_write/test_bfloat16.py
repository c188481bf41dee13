"""The kernel against the reference in bfloat16."""

import jax.numpy as jnp
import pytest

from tests.kernels.deep_write.cases import Case, assert_close, outputs_and_gradients

CASES = [
    Case("titans", "layer", "checkpoint", 32, 64, 128, 150, dtype=jnp.bfloat16),
    Case("dla", "none", "independent", 64, 16, 32, 70, dtype=jnp.bfloat16),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_all_gradients(case):
    found = outputs_and_gradients(case, "pallas_interpret")
    assert_close(found, outputs_and_gradients(case, "reference"), 1e-2)
