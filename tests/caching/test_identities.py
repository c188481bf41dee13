"""What the paper says must be equal, over random shapes and lengths."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rare import param

from .cases import RULES, SEGMENTATIONS, WRITE_MODES, Case, assert_close, make_inputs, quick_call

# Memories of DLA are those of Titans with less around them.
MOSTLY = [param(rule, rare=rule == "dla") for rule in RULES]
TOLERANCE = 1e-4  # float32, as users run it; test_combinations.py has the float64 equalities

shapes = st.fixed_dictionaries(
    {
        "length": st.integers(1, 40),
        "batch": st.integers(1, 2),
        "heads": st.integers(1, 3),
        "dim": st.integers(3, 6),
        "seed": st.integers(0, 99),
    }
)
grids = st.sampled_from([(4, 1), (6, 3), (8, 8), (12, 4)])


def on_grid(case, grid):
    return dataclasses.replace(case, segment_len=grid[0], chunk_len=grid[1])


def run(case, inputs):
    return quick_call(case, inputs)[0]


def attention_without_softmax(inputs, decay=None):
    """y_t = sum_{j <= t} decay(j+1..t) <k_j, q_t> v_j."""
    scores = np.einsum("bthd,bjhd->bhtj", inputs["q"], inputs["k"])
    if decay is not None:
        logs = np.cumsum(np.log(decay), axis=1).transpose(0, 2, 1)
        scores = scores * np.exp(np.minimum(logs[..., :, None] - logs[..., None, :], 0.0))
    return np.einsum("bhtj,bjhd->bthd", np.tril(scores), inputs["v"])


@pytest.mark.parametrize("segmentation", SEGMENTATIONS)
@given(shape=shapes, grid=grids)
def test_residual_of_independent_linear_memories_is_linear_attention(segmentation, shape, grid):
    """Equations 12 and 13."""
    case = on_grid(Case("linear", "residual", segmentation, "independent", "none"), grid)
    inputs = make_inputs(case, **shape)
    inputs["gates"] = None
    assert_close(run(case, inputs), attention_without_softmax(inputs), TOLERANCE)


@pytest.mark.parametrize("rule", ["linear", "swla"])
@given(shape=shapes, grid=grids)
def test_plain_matrix_memories_are_decayed_linear_attention(rule, shape, grid):
    """No caching; for swla with nothing of the window (beta = 0, or c = 1) and lam = 1."""
    case = on_grid(Case(rule, "none", gate="none"), grid)
    inputs = make_inputs(case, **shape)
    gates = inputs["gates"]
    expected = attention_without_softmax(inputs, gates.alpha)
    if rule == "swla":
        gates = gates._replace(beta=np.zeros_like(gates.beta), lam=np.ones_like(gates.lam))
        narrowest = {**inputs, "gates": gates._replace(beta=gates.beta[..., None][..., :0])}
        assert_close(run(case, narrowest), expected, TOLERANCE)
    assert_close(run(case, {**inputs, "gates": gates}), expected, TOLERANCE)


@pytest.mark.parametrize("rule", ["linear", "swla"])
@given(
    shape=shapes,
    grid=grids,
    segmentation=st.sampled_from(SEGMENTATIONS),
    write_mode=st.sampled_from(WRITE_MODES),
)
def test_soup_of_matrices_is_grm(rule, shape, grid, segmentation, write_mode):
    grm = on_grid(Case(rule, "grm", segmentation, write_mode), grid)
    inputs = make_inputs(grm, **shape)
    soup = dataclasses.replace(grm, aggregation="soup")
    assert_close(run(soup, inputs), run(grm, inputs), TOLERANCE)


@pytest.mark.parametrize("rule", RULES)
@given(shape=shapes, aggregation=st.sampled_from(["residual", "grm", "soup", "ssc"]))
def test_one_segment_is_the_plain_recurrence(rule, shape, aggregation):
    gate = "none" if aggregation == "residual" else "context"
    case = Case(rule, aggregation, gate=gate, segment_len=40, chunk_len=5)
    plain = dataclasses.replace(case, aggregation="none", gate="none")
    inputs = make_inputs(case, **shape)
    assert_close(run(case, inputs), run(plain, {**inputs, "u": None}), TOLERANCE)


@pytest.mark.parametrize("rule", MOSTLY)
@given(shape=shapes, segmentation=st.sampled_from(SEGMENTATIONS))
def test_constant_gates_are_residual(rule, shape, segmentation):
    grm = Case(rule, "grm", segmentation, "independent", "none")
    inputs = make_inputs(grm, **shape)
    residual = dataclasses.replace(grm, aggregation="residual")
    assert_close(run(grm, inputs), run(residual, inputs), TOLERANCE)


@pytest.mark.parametrize("rule", MOSTLY)
@given(shape=shapes, write_mode=st.sampled_from(WRITE_MODES))
def test_ssc_that_selects_all_is_grm(rule, shape, write_mode):
    grm = Case(rule, "grm", "constant", write_mode)
    inputs = make_inputs(grm, **shape)
    ssc = dataclasses.replace(grm, aggregation="ssc", top_k=7)
    assert_close(run(ssc, inputs), run(grm, inputs), TOLERANCE)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("segmentation", SEGMENTATIONS)
def test_checkpoints_are_the_plain_states(rule, segmentation):
    """With 4 segments of 6 the last cached memory is the recurrence's state after 24 tokens."""
    case = Case(rule, "residual", segmentation, "checkpoint", "none")
    inputs = make_inputs(case, 24)
    _, cache = quick_call(case, inputs)
    plain = dataclasses.replace(case, aggregation="none")
    _, plain_cache = quick_call(plain, inputs)
    slot = 3 if segmentation == "constant" else 2
    last = {n: w[:, :, slot] for n, w in cache.memories.weights._asdict().items()}
    assert_close(last, plain_cache.state.weights._asdict(), 1e-6)


@pytest.mark.parametrize("rule", MOSTLY)
def test_powers_of_two_segments_leave_one_bucket(rule):
    """After 4 segments the only bucket is their union: one constant segment four times as long."""
    case = Case(rule, "grm", "logarithmic", "independent")
    inputs = make_inputs(case, 25)
    if rule == "swla":  # merged buckets have an empty window at each base segment's start
        inputs["gates"] = inputs["gates"]._replace(beta=np.zeros_like(inputs["gates"].beta))
    long = dataclasses.replace(case, segmentation="constant", segment_len=24)
    assert_close(run(case, inputs)[:, 24], run(long, inputs)[:, 24], TOLERANCE)
