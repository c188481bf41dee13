"""The cache's room: it grows outside `jit`, is reserved for it, and is never silently exceeded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mc_jax
from mc_jax.caching.storage import form_of

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


def go_on(case, inputs, cache, implementation):
    """The rest of a text, from a cache of its first 14 tokens."""
    grid = {"segment_len": case.segment_len, "segmentation": case.segmentation}
    cache = mc_jax.reserve(cache, LENGTH, **grid)
    rest = quick_jit(
        lambda x, cache: call(case, x, initial_cache=cache, implementation=implementation)
    )
    return rest(cut(inputs, case, 14, LENGTH), cache)


@pytest.mark.parametrize(
    ("case", "form"),
    [
        (Case("linear", "ssc"), "int8"),
        (Case("titans", "grm", write_mode="checkpoint"), "bfloat16"),
        (Case("linear", "soup", "logarithmic"), "int8"),
    ],
    ids=str,
)
def test_rounded_memories(case, form):
    """Kept in their form, and read alike by all implementations, near to the exact ones."""
    inputs = cast(make_inputs(case, LENGTH), jnp.float32)
    _, cache = quick_jit(lambda x: call(case, x))(cut(inputs, case, 0, 14))
    exact, _ = go_on(case, inputs, cache, "chunked")
    rounded, _ = go_on(case, inputs, mc_jax.store(cache, form), "recurrent")
    error = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 5e-2
    for implementation in ("decode", "chunked"):
        out, after = go_on(case, inputs, mc_jax.store(cache, form), implementation)
        assert form_of(after.memories.weights) == form
        # Within a call buckets of logarithmic segments are read before they are rounded.
        unrounded = case.segmentation == "logarithmic" and implementation == "chunked"
        assert_close(out, rounded, 5e-2 if unrounded else 1e-4)


def test_memories_on_the_host_read_the_same():
    """And their room grows there."""
    case = Case("linear", "ssc")
    inputs = cast(make_inputs(case, LENGTH), jnp.float32)
    _, cache = quick_jit(lambda x: call(case, x))(cut(inputs, case, 0, 14))
    exact, _ = go_on(case, inputs, cache, "chunked")
    for implementation in ("decode", "chunked"):
        stored = mc_jax.store(cache, "float32", host=True)
        out, after = go_on(case, inputs, stored, implementation)
        assert after.memories.weights.w.sharding.memory_kind == "pinned_host"
        assert_close(out, exact, 1e-5)


def test_what_cannot_be_stored():
    case = Case("linear", "grm", "logarithmic")
    inputs = cast(make_inputs(case, LENGTH), jnp.float32)
    _, cache = call(case, cut(inputs, case, 0, 14))
    with pytest.raises(mc_jax.InputError, match="int4.*float32 | bfloat16 | int8"):
        mc_jax.store(cache, "int4")
    with pytest.raises(mc_jax.InputError, match="memories on the device"):
        call(case, inputs, initial_cache=mc_jax.store(cache, "float32", host=True))
