"""The update rules alone, without caching: every option of a rule against the numpy loops."""

import jax
import jax.numpy as jnp
import pytest

from caching.cases import Case, assert_close, call, cast, cut, make_inputs, quick_call, quick_jit
from caching.naive import naive_memory_caching
from mc_jax import reserve

LENGTH = 29


def check(case, implementation, inputs=None, **sizes):
    inputs = make_inputs(case, LENGTH, **sizes) if inputs is None else inputs
    expected, final = naive_memory_caching(**inputs, **case.options())
    out, cache = quick_call(case, inputs, jnp.float64, implementation=implementation)
    assert_close(out, expected, 1e-10, "output ")
    cache = jax.device_get(cache)
    for b, heads in enumerate(final):
        for h, state in enumerate(heads):
            weights = {name: w[b, h] for name, w in cache.state.weights._asdict().items()}
            assert_close(weights, state.weights, 1e-10, "weights ")
            if case.rule == "titans":
                momentum = {n: s[b, h] for n, s in cache.state.momentum._asdict().items()}
                assert_close(momentum, state.momentum, 1e-10, "momentum ")
    return out


both = pytest.mark.parametrize("implementation", ["chunked", "recurrent"])


@both
@pytest.mark.parametrize(
    ("rule", "mem_norm", "activation"),
    [
        ("titans", "layer", "gelu"),
        ("titans", "layer", "gelu_tanh"),
        ("titans", "layer", "silu"),
        ("titans", "layer", "relu"),
        ("titans", "none", "gelu"),
        ("titans", "weight_l2", "gelu"),
        ("dla", "none", "silu"),
        ("dla", "weight_l2", "gelu"),
    ],
)
def test_memory_networks(rule, mem_norm, activation, implementation, x64):
    case = Case(rule, "none", gate="none", mem_norm=mem_norm, activation=activation)
    check(case, implementation, batch=2, heads=3)


@both
@pytest.mark.parametrize("rule", ["linear", "swla", "dla", "titans"])
@pytest.mark.parametrize("chunk_len", [1, 4, 32])
def test_chunk_lengths(rule, chunk_len, implementation, x64):
    """chunk_len 1 is the exact recurrence; 4 leaves one token over; 32 takes all in one chunk."""
    check(Case(rule, "none", gate="none", chunk_len=chunk_len), implementation)


@pytest.mark.parametrize("rule", ["linear", "swla"])
def test_chunks_of_matrix_memories_are_only_a_way_to_compute(rule, x64):
    cases = [Case(rule, "none", gate="none", chunk_len=c) for c in (1, 7)]
    inputs = make_inputs(cases[0], LENGTH)
    first, second = (check(case, "chunked", inputs) for case in cases)
    assert_close(first, second, 1e-12)


@both
@pytest.mark.parametrize("window", [1, 2, 3, 5])
@pytest.mark.parametrize("aggregation", ["none", "residual"])
@pytest.mark.parametrize("write_mode", ["independent", "checkpoint"])
def test_sliding_windows(window, aggregation, write_mode, implementation, x64):
    """Windows longer than a chunk, and kept or emptied at a segment's start."""
    case = Case("swla", aggregation, write_mode=write_mode, gate="none", chunk_len=3)
    check(case, implementation, window=window)


@both
@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize("write_mode", ["independent", "checkpoint"])
def test_sliding_windows_across_calls(window, write_mode, implementation, x64):
    """The cache holds the last tokens of a window, across pieces that are shorter than it."""
    case = Case("swla", "residual", write_mode=write_mode, gate="none")
    inputs = make_inputs(case, LENGTH, window=window)
    expected, _ = naive_memory_caching(**inputs, **case.options())
    begin = quick_jit(lambda piece: call(case, piece, implementation=implementation))
    go_on = quick_jit(
        lambda piece, cache: call(case, piece, initial_cache=cache, implementation=implementation)
    )
    out, cache = begin(cast(cut(inputs, case, 0, 7), jnp.float64))
    cache = reserve(cache, LENGTH, segment_len=case.segment_len)
    outs = [out]
    for start in range(7, LENGTH, 2):
        out, cache = go_on(cast(cut(inputs, case, start, start + 2), jnp.float64), cache)
        outs.append(out)
    assert_close(jnp.concatenate(outs, axis=1), expected, 1e-10)


@both
@pytest.mark.parametrize("rule", ["linear", "dla"])
def test_decay_is_optional(rule, implementation, x64):
    case = Case(rule, "none", gate="none")
    inputs = make_inputs(case, LENGTH)
    inputs["gates"] = None if rule == "linear" else inputs["gates"]._replace(alpha=None)
    check(case, implementation, inputs)
