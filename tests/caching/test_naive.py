"""The numpy loops against what can be said of them without the package."""

import dataclasses

import numpy as np
import pytest

from . import naive
from .cases import RULES, SEGMENTATIONS, WRITE_MODES, Case, assert_close, make_inputs
from .naive import naive_memory_caching

LENGTH = 29


def run(case, inputs=None):
    inputs = make_inputs(case, LENGTH) if inputs is None else inputs
    return naive_memory_caching(**inputs, **case.options())[0]


def attention_without_softmax(inputs):
    """Linear attention as attention: y_t = sum_{j <= t} <k_j, q_t> v_j."""
    scores = np.einsum("bthd,bjhd->bhtj", inputs["q"], inputs["k"])
    return np.einsum("bhtj,bjhd->bthd", np.tril(scores), inputs["v"])


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu", "relu"])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("loss", ["dot", "square"])
def test_chain_rule_against_finite_differences(activation, normed, loss):
    rng = np.random.default_rng(1)
    k, v, scale, bias = rng.normal(size=(4, 5))
    norm = (scale, bias) if normed else None
    weights = {"w1": rng.normal(size=(5, 6)), "w2": rng.normal(size=(6, 5))}

    def loss_at(w):
        prediction = naive.read_memory(w, k, norm, activation)
        return -prediction @ v if loss == "dot" else ((prediction - v) ** 2).sum()

    gradient = naive.loss_gradient(weights, k, v, loss, norm, activation)
    for name, w in weights.items():
        for index in np.ndindex(w.shape):
            step = np.zeros_like(w)
            step[index] = 1e-6
            rise = loss_at({**weights, name: w + step}) - loss_at({**weights, name: w - step})
            np.testing.assert_allclose(gradient[name][index], rise / 2e-6, rtol=1e-6, atol=1e-8)


def test_buckets_are_the_binary_digits():
    assert naive.binary_buckets(0) == []
    assert naive.binary_buckets(5) == [(0, 4, 2), (4, 5, 0)]
    assert naive.binary_buckets(8) == [(0, 8, 3)]
    assert naive.binary_buckets(37) == [(0, 32, 5), (32, 36, 2), (36, 37, 0)]


@pytest.mark.parametrize("segmentation", SEGMENTATIONS)
def test_residual_of_independent_linear_memories_is_linear_attention(segmentation):
    case = Case("linear", "residual", segmentation, gate="none")
    inputs = make_inputs(case, LENGTH)
    inputs["gates"] = None
    assert_close(run(case, inputs), attention_without_softmax(inputs), 1e-12)


@pytest.mark.parametrize("rule", RULES[:2])
@pytest.mark.parametrize("segmentation", SEGMENTATIONS)
@pytest.mark.parametrize("write_mode", WRITE_MODES)
def test_soup_of_matrices_is_grm(rule, segmentation, write_mode):
    grm = Case(rule, "grm", segmentation, write_mode)
    soup = dataclasses.replace(grm, aggregation="soup")
    assert_close(run(soup), run(grm), 1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_ssc_that_selects_all_is_grm(rule):
    grm = Case(rule, "grm")
    assert_close(run(dataclasses.replace(grm, aggregation="ssc", top_k=9)), run(grm), 1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("aggregation", ["residual", "grm", "soup"])
def test_one_segment_is_the_plain_recurrence(rule, aggregation):
    case = Case(rule, aggregation, segment_len=30)
    plain = Case(rule, "none", gate="none")
    inputs = make_inputs(case, LENGTH)
    assert_close(run(case, inputs), run(plain, inputs), 1e-12)


def test_dla_with_a_one_layer_memory_is_linear_attention():
    case = Case("dla", "none", gate="none")
    inputs = make_inputs(case, LENGTH)
    inputs["params"] = None
    inputs["gates"] = inputs["gates"]._replace(eta=np.ones((1, LENGTH, 2)), alpha=None)
    assert_close(run(case, inputs), attention_without_softmax(inputs), 1e-12)


def test_swla_without_window_or_decay_is_linear_attention():
    case = Case("swla", "none", gate="none")
    inputs = make_inputs(case, LENGTH)
    ones = np.ones((1, LENGTH, 2))
    inputs["gates"] = inputs["gates"]._replace(alpha=ones, beta=0 * ones, lam=ones)
    assert_close(run(case, inputs), attention_without_softmax(inputs), 1e-12)


def test_titans_with_one_chunk_is_the_closed_form():
    """M_T = A(T,0) M_0 - sum_i eta_i (sum_{j>=i} A(T,j) B(j,i)) g_i, gradients all at M_0."""
    case = Case("titans", "none", gate="none", chunk_len=LENGTH)
    inputs = make_inputs(case, LENGTH)
    _, final = naive_memory_caching(**inputs, **case.options())
    gates, params = inputs["gates"], inputs["params"]
    for h in range(2):
        alpha, beta, eta = (g[0, :, h] for g in gates)
        initial = {"w1": params.w1[h], "w2": params.w2[h]}
        expected = {name: np.prod(alpha) * w for name, w in initial.items()}
        for i in range(LENGTH):
            weight = eta[i] * sum(
                np.prod(alpha[j + 1 :]) * np.prod(beta[i + 1 : j + 1]) for j in range(i, LENGTH)
            )
            k, v = inputs["k"][0, i, h], inputs["v"][0, i, h]
            norm = (params.norm.scale[h], params.norm.bias[h])
            gradient = naive.loss_gradient(initial, k, v, "square", norm)
            expected = {name: w - weight * gradient[name] for name, w in expected.items()}
        assert_close(final[0][h].weights, expected, 1e-12)


def test_linear_buckets_are_the_memory_of_their_tokens():
    """For "linear" the decayed sum of the base segments is the recurrence over the bucket."""
    case = Case("linear", "grm", "logarithmic")
    _, final = naive_memory_caching(**make_inputs(case, 45), **case.options())
    inputs = make_inputs(case, 45)
    (big, small, smallest) = final[0][0].cached
    assert [(c.first, c.end) for c in (big, small, smallest)] == [(0, 24), (24, 36), (36, 42)]
    alpha = inputs["gates"].alpha[0, :, 0]
    expected = np.zeros((5, 5))
    for t in range(24, 36):
        expected = alpha[t] * expected + np.outer(inputs["v"][0, t, 0], inputs["k"][0, t, 0])
    assert_close(small.weights["w"], expected, 1e-12)


def test_weight_l2_restores_the_row_norms():
    case = Case("titans", "none", gate="none", mem_norm="weight_l2", chunk_len=3)
    inputs = make_inputs(case, 30)
    _, final = naive_memory_caching(**inputs, **case.options())
    for name in ("w1", "w2"):
        initial = getattr(inputs["params"], name)[0]
        found = final[0][0].weights[name]
        assert np.abs(found - initial).max() > 1e-2
        assert_close(np.linalg.norm(found, axis=1), np.linalg.norm(initial, axis=1), 1e-12)


def test_checkpoint_snapshots_are_the_plain_states():
    case = Case("titans", "grm", write_mode="checkpoint", segment_len=6)
    inputs = make_inputs(case, 18)
    _, final = naive_memory_caching(**inputs, **case.options())
    plain = Case("titans", "none", gate="none")
    _, plain_final = naive_memory_caching(**inputs, **plain.options())
    assert_close(final[0][1].cached[-1].weights, plain_final[0][1].weights, 1e-12)
