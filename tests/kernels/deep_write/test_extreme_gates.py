"""The kernel against the reference where gates are 0 or 1 and where retention underflows."""

import pytest

from tests.kernels.deep_write.cases import Case, assert_close, outputs_and_gradients

CASES = [
    (Case("titans", "none", "checkpoint", 32, 16, 32, 71, extreme=True), 2e-5),
    (Case("titans", "layer", "independent", 32, 64, 64, 100, extreme=True), 2e-5),
    # Only DLA forgets everything at a retention of 0. Sums of logs near -300 are known to 3e-5, and
    # the norm magnifies what is left in an empty memory.
    (Case("dla", "layer", "checkpoint", 32, 16, 32, 71, extreme=True), 2e-3),
]


@pytest.mark.parametrize("case, tolerance", CASES, ids=str)
def test_outputs_and_all_gradients(case, tolerance):
    found = outputs_and_gradients(case, "pallas_interpret")
    assert_close(found, outputs_and_gradients(case, "reference"), tolerance)
