"""The kernel against the reference: segments that start afresh."""

import pytest

from mc_jax.kernels.deep_write.config import Config
from tests.kernels.deep_write.cases import Case, assert_close, outputs_and_gradients

CASES = [
    # The last segment is short and its last chunk partly padding.
    Case("titans", "layer", "independent", 32, 16, 32, 71),
    # Segments are full: the final state is the initial one.
    Case("titans", "none", "independent", 64, 64, 64, 128, activation="gelu_tanh"),
    # A step is half a segment, so that some spans start from a state that was written down.
    Case("dla", "layer", "independent", 96, 16, 64, 112, config=Config(heads=2, span=2)),
    Case("dla", "none", "independent", 128, 16, 32, 64, activation="silu", heads=3),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_all_gradients(case):
    found = outputs_and_gradients(case, "pallas_interpret")
    assert_close(found, outputs_and_gradients(case, "reference"), 2e-5)
