"""The XLA form against the reference."""

import pytest

from tests.kernels.deep_write.cases import Case, assert_close, outputs_and_gradients

CASES = [
    Case("titans", "layer", "independent", 32, 16, 32, 71),
    Case("titans", "weight_l2", "checkpoint", 32, 16, 32, 71),
    Case("dla", "none", "independent", 32, 16, 32, 64, extreme=True),
    Case("dla", "weight_l2", "independent", 32, 16, 32, 20),
    Case("dla", "layer", "checkpoint", 32, 16, 32, 96),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_all_gradients(case):
    found = outputs_and_gradients(case, "xla")
    assert_close(found, outputs_and_gradients(case, "reference"), 2e-5)
