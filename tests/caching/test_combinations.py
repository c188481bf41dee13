"""Every rule x aggregation x segmentation x write mode x gate, in float64; some with `--all` only.

Outputs and caches against the numpy loops, gradients of the chunked form against those of the
recurrence, causality, and whole = pieces = token by token.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest

import mc_jax
from tests.rare import param

from .cases import (
    AGGREGATIONS,
    GATED,
    RULES,
    SEGMENTATIONS,
    WRITE_MODES,
    Case,
    assert_close,
    call,
    combinations,
    cut,
    make_inputs,
    pooled_values,
    quick_jit,
    routed_blocks,
)
from .naive import naive_memory_caching

# Six segments of 6 and 5 tokens: the buckets 4 + 2, and a last chunk of 3 that is not full.
LENGTH = 41
TOLERANCE = 1e-10

pytestmark = pytest.mark.usefixtures("x64")


def recurrence_compiled(case):
    """Where the recurrence runs on the whole: not for the rarer gates of the dearer rules.

    A gate's code is the same for every rule, and compiling is nearly all of the time. test_pieces
    runs the recurrence for all of them.
    """
    return case.rule == "linear" or case.gate == "context" or case.aggregation == "residual"


class Whole(NamedTuple):
    """One combination: its inputs, what the loops say, and the chunked form on all tokens."""

    case: Case
    inputs: dict
    expected: np.ndarray
    final: list
    run: Callable
    out: jax.Array
    cache: mc_jax.Cache
    gradient: dict


def program(case, implementation):
    """Compiled (out, cache, gradient of sum of out * weights) of (inputs, weights)."""

    def weighted_sum(inputs, weights):
        out, cache = call(case, inputs, implementation=implementation)
        return (out * weights).sum(), (out, cache)

    def run(inputs, weights):
        gradient, results = jax.grad(weighted_sum, has_aux=True)(inputs, weights)
        return *results, gradient

    return quick_jit(run)


def cases():
    """All of them, of which most gated ones are rare.

    The others have every rule and aggregation with each gate, and with each layout of segments.
    """
    layouts = list(itertools.product(SEGMENTATIONS, WRITE_MODES))
    turns = {"context": [0], "shared_query": [1], "position": [2], "none": [3]}
    found = []
    for case in combinations():
        start = RULES.index(case.rule) + AGGREGATIONS.index(case.aggregation)
        # SSC, which is not without gates, has the fourth layout with those of its context.
        more = [3] if case.aggregation == "ssc" else []
        among = turns[case.gate] + (more if case.gate == "context" else [])
        often = [layouts[(start + turn) % len(layouts)] for turn in among]
        rare = case.aggregation in GATED and (case.segmentation, case.write_mode) not in often
        found.append(param(case, rare=rare, id=str(case)))
    return found + [param(x, rare=False, id=str(x)) for x in pooled_values() + routed_blocks()]


@pytest.fixture(scope="module", params=cases())
def whole(request):
    case = request.param
    inputs = make_inputs(case, LENGTH, hidden=10)
    expected, final = naive_memory_caching(**inputs, **case.options())
    with jax.enable_x64(True):
        run = program(case, "chunked")
        yield Whole(case, inputs, expected, final, run, *run(inputs, weights_like(expected)))


@functools.cache
def _weights(shape):
    return np.random.default_rng(1).normal(size=shape)


def weights_like(out):
    return _weights(out.shape)


def assert_cache_is(case, cache, final):
    """The cached memories, descriptors and running weights against the loops'."""
    for h, expected in enumerate(final[0]):
        for cached in expected.cached:
            # Constant: slot = segment. Logarithmic: slot = level, and the distance is 1 + level.
            slot = cached.first // case.segment_len
            if case.segmentation == "logarithmic":
                slot = cached.distance - 1
            found = {name: w[0, h, slot] for name, w in cache.memories.weights._asdict().items()}
            assert_close(found, cached.weights, TOLERANCE, f"memory in slot {slot} ")
            if cache.descriptors is not None:
                descriptor = cache.descriptors[0, h, slot]
                assert_close(descriptor, cached.descriptor, TOLERANCE, "descriptor")
        running = {name: w[0, h] for name, w in cache.state.weights._asdict().items()}
        assert_close(running, expected.weights, TOLERANCE, "running weights ")


def bytes_of_cache(case):
    """What the package says a decoder of one sequence keeps."""
    options = case.options()
    del options["mem_norm"], options["activation"], options["pooled"]
    sizes = {"heads": 2, "head_dim": 5, "expansion": 2, "dtype": "float64"}
    return mc_jax.state_size(LENGTH, **sizes, **options)


def test_both_forms(whole):
    """The chunked form is the equations; so is the recurrence, and it has the same gradients."""
    assert_close(whole.out, whole.expected, TOLERANCE, "output")
    assert_cache_is(whole.case, jax.device_get(whole.cache), whole.final)
    assert sum(x.nbytes for x in jax.tree.leaves(whole.cache)) == bytes_of_cache(whole.case)
    if recurrence_compiled(whole.case):
        run = program(whole.case, "recurrent")
        out, cache, gradient = run(whole.inputs, weights_like(whole.out))
        assert_close(out, whole.expected, TOLERANCE, "recurrent output")
        assert_close(cache, whole.cache, TOLERANCE, "recurrent cache")
        assert_close(gradient, whole.gradient, TOLERANCE, "recurrent gradient")


def tokens_of(case, tree):
    """The arrays of an inputs-like tree that have a length axis, by name."""
    tokens = {name: tree[name] for name in ("q", "k", "v")}
    if case.gate in ("context", "position"):
        tokens["u"] = tree["u"]
    return tokens | tree["gates"]._asdict()


def test_causality(whole):
    """d out[t] / d input[t'] = 0 for t' > t; and another future leaves the outputs as they were.

    The second sees selections, too, which have no gradient.
    """
    for t in range(0, LENGTH, 5):  # every place of a segment of 6 and of a chunk of 3
        only_t = np.zeros_like(weights_like(whole.out))
        only_t[:, t] = weights_like(whole.out)[:, t]
        gradient = jax.device_get(whole.run(whole.inputs, only_t)[2])
        for name, g in tokens_of(whole.case, gradient).items():
            assert np.all(g[:, t + 1 :] == 0.0), f"out[{t}] sees the future through {name}"
            if name in ("q", "k", "v"):
                assert np.any(g[:, t] != 0.0), f"out[{t}] does not depend on its own {name}"
    other = make_inputs(whole.case, LENGTH, hidden=10, seed=5)
    for t in range(1, LENGTH, 5):

        def graft(past, future, t=t):
            return np.concatenate([past[:, :t], future[:, t:]], axis=1)

        ours, theirs = (tokens_of(whole.case, x) for x in (whole.inputs, other))
        mixed = {name: graft(ours[name], theirs[name]) for name in ours}
        inputs = {name: mixed.pop(name, x) for name, x in whole.inputs.items()}
        inputs["gates"] = inputs["gates"]._replace(**mixed)
        out = np.asarray(whole.run(inputs, weights_like(whole.out))[0])
        assert_close(out[:, :t], whole.out[:, :t], 1e-14, f"out[:{t}]")
        assert np.abs(out[:, t] - whole.out[:, t]).max() > 1e-3


def test_pieces(whole):
    """Token by token, and in pieces of 1 and 8 tokens whose cuts fall anywhere."""
    case, inputs = whole.case, whole.inputs
    go_on = quick_jit(lambda piece, cache: call(case, piece, initial_cache=cache))
    first, start = quick_jit(lambda piece: call(case, piece))(cut(inputs, case, 0, 1))
    start = mc_jax.reserve(
        start, LENGTH, segment_len=case.segment_len, segmentation=case.segmentation
    )
    pieces = np.random.default_rng(len(str(case))).permutation([8] * 4 + [1] * 8)
    for what, lengths in (("token by token", [1] * (LENGTH - 1)), ("pieces", pieces)):
        cache, outs, position = start, [first], 1
        for length in lengths:
            out, cache = go_on(cut(inputs, case, position, position + length), cache)
            outs.append(out)
            position += length
        assert position == LENGTH
        assert_close(np.concatenate(outs, axis=1), whole.expected, TOLERANCE, what)
        assert_close(cache, whole.cache, TOLERANCE, f"cache, {what}")
