"""The kernel against the reference: one continuing recurrence."""

import pytest

from mc_jax.kernels.deep_write.config import Config
from tests.kernels.deep_write.cases import Case, assert_close, outputs_and_gradients

CASES = [
    Case("titans", "layer", "checkpoint", 32, 16, 32, 71, config=Config(heads=1, span=1)),
    Case("titans", "none", "checkpoint", 64, 64, 64, 150, activation="relu"),
    Case("dla", "layer", "checkpoint", 96, 16, 48, 96),
    # Fewer tokens than a chunk.
    Case("dla", "none", "checkpoint", 128, 64, 128, 20),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_all_gradients(case):
    found = outputs_and_gradients(case, "pallas_interpret")
    assert_close(found, outputs_and_gradients(case, "reference"), 2e-5)
