"""The cache's room: it grows outside `jit`, is reserved for it, and is never silently exceeded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mc_jax

from .cases import Case, assert_close, call, cast, cut, make_inputs, quick_jit
from .naive import naive_memory_caching

LENGTH = 41


@pytest.mark.parametrize(
    "case",
    [
        Case("linear", "grm"),
        Case("dla", "grm", "logarithmic", "independent"),
    ],
    ids=str,
)
def test_grows_outside_jit(case):
    """From no room at all, one segment's worth and several at a time."""
    inputs = make_inputs(case, LENGTH)
    expected, _ = naive_memory_caching(**inputs, **case.options())
    inputs = cast(inputs, jnp.float32)
    cache, outs = None, []
    for start, stop in ((0, 4), (4, 7), (7, LENGTH)):
        out, cache = call(case, cut(inputs, case, start, stop), initial_cache=cache)
        outs.append(out)
    assert cache.capacity == (6 if case.segmentation == "constant" else 3)
    assert_close(np.concatenate(outs, axis=1), expected, 1e-4)


@pytest.mark.parametrize("implementation", ["chunked", "recurrent"])
@pytest.mark.parametrize("segmentation", ["constant", "logarithmic"])
def test_outputs_past_the_room_are_nan(segmentation, implementation):
    """Inside jit a cache cannot grow; a token whose prefix is not all there has no output."""
    case = Case("linear", "grm", segmentation)
    inputs = cast(make_inputs(case, LENGTH), jnp.float32)
    _, cache = call(case, cut(inputs, case, 0, 7))
    assert cache.capacity == 1
    go_on = quick_jit(
        lambda piece, cache: call(case, piece, initial_cache=cache, implementation=implementation)
    )
    within, cache = go_on(cut(inputs, case, 7, 11), cache)
    assert np.isfinite(within).all()
    past, _ = go_on(cut(inputs, case, 11, 15), cache)
    assert np.isnan(past[:, 1:]).all()


def test_reserve_only_adds_room():
    case = Case("linear", "grm", "logarithmic", "independent")
    inputs = cast(make_inputs(case, LENGTH), jnp.float32)
    _, cache = call(case, cut(inputs, case, 0, 13))
    grid = {"segment_len": case.segment_len, "segmentation": case.segmentation}
    roomy = mc_jax.reserve(cache, 100, **grid)
    assert (cache.capacity, roomy.capacity) == (2, 5)
    same = jax.tree.map(lambda x: x[:, :, :2], (roomy.memories, roomy.descriptors))
    assert_close(same, (cache.memories, cache.descriptors), 0)
    assert_close(roomy.state, cache.state, 0)
    assert mc_jax.reserve(roomy, 20, **grid).capacity == 5


def test_a_gate_that_is_not_read_changes_nothing():
    """residual and none weigh every memory by 1, whatever gate is named."""
    for aggregation in ("residual", "none"):
        ungated = Case("linear", aggregation, gate="none")
        inputs = cast(make_inputs(Case("linear"), LENGTH), jnp.float32)
        found = call(Case("linear", aggregation), inputs)
        assert_close(found, call(ungated, inputs | {"u": None}), 0)
