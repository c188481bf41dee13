"""The XLA form of the read of MLP memories against the reference, outputs and all gradients."""

import jax.numpy as jnp
import pytest

from mc_jax.kernels.deep_read import deep_read
from mc_jax.kernels.gates import Scores, cached_logits
from tests.kernels.deep_read.cases import Case, assert_equals_the_reference, inputs
from tests.kernels.reads import assert_close

CASES = {
    "grm": Case(),
    "residual": Case(routed=False, mem_norm="none"),
    "ssc": Case(top_k=3),
    "one memory": Case(tokens=50, memories=1),
    "nothing cached in sight": Case(tokens=20, memories=3),
    "many memories": Case(16, 262, 130, 2, top_k=5, mem_norm="none"),
    "later part of a sequence": Case(tokens=100, memories=20, first_segment=17, top_k=4),
    "bfloat16": Case(head_dim=96, tokens=150, memories=4, dtype=jnp.bfloat16),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_reference(case):
    assert_equals_the_reference(case, "xla")


@pytest.mark.parametrize("implementation", ["reference", "xla", None])
def test_scores_that_come_from_elsewhere(implementation):
    """Logits that are given equal those that are computed from descriptors."""
    case = Case(tokens=100, memories=4, top_k=2)
    (q, weights, router), _ = inputs(case)
    scores = Scores(router.online, cached_logits(router))
    expected = deep_read(q, weights, router, implementation="reference", **case.options)
    actual = deep_read(q, weights, scores, implementation=implementation, **case.options)
    assert_close(actual, expected, 2e-5)
