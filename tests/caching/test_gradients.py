"""Gradients against finite differences, and through a cache that is handed on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mc_jax

from .cases import Case, assert_close, call, cast, cut, make_inputs, quick_jit

LENGTH = 41
SAMPLE = [
    Case("linear", "grm", "logarithmic", "checkpoint", "shared_query"),
    Case("linear", "ssc", "constant", "independent", "context"),
    Case("swla", "soup", "logarithmic", "independent", "position"),
    Case("swla", "residual", "constant", "checkpoint", "none"),
    Case("dla", "grm", "logarithmic", "independent", "context"),
    Case("dla", "soup", "constant", "checkpoint", "none", mem_norm="none"),
    Case("dla", "ssc", "logarithmic", "checkpoint", "position", activation="silu"),
    Case("titans", "none", gate="none", mem_norm="weight_l2"),
    Case("titans", "grm", "constant", "checkpoint", "context"),
    Case("titans", "soup", "logarithmic", "checkpoint", "shared_query", activation="gelu_tanh"),
    Case("titans", "ssc", "constant", "independent", "context", mem_norm="weight_l2"),
]


@pytest.mark.parametrize(
    ("case", "implementation"),
    [
        (Case("linear", "ssc"), "recurrent"),
        (Case("titans", "residual", gate="none"), "decode"),
        (Case("dla", "none", gate="none"), "chunked"),
    ],
    ids=str,
)
def test_forward_mode(case, implementation, x64):
    """Where neither gates nor reads have a gradient of their own."""
    inputs = cast(make_inputs(case, 14), jnp.float64)

    def output(q):
        return call(case, inputs | {"q": q}, implementation=implementation)[0]

    q, direction = inputs["q"], random_like(inputs["q"], 3)
    y, forward = quick_jit(lambda q: jax.jvp(output, (q,), (direction,)))(q)
    weight = random_like(y, 4)
    back = quick_jit(lambda q: jax.vjp(output, q)[1](weight)[0])(q)
    assert_close(jnp.sum(forward * weight), jnp.sum(direction * back), 1e-10)


def is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def random_like(tree, seed):
    """A random direction in the space of the tree's floats; zeros for its integers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) if is_float(x) else 0 * x, x.dtype), tree
    )


def begin(case, inputs):
    """Cache of the first 16 tokens, within the third segment, with room for the rest."""
    _, cache = call(case, cut(inputs, case, 0, 16))
    return mc_jax.reserve(
        cache, LENGTH, segment_len=case.segment_len, segmentation=case.segmentation
    )


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_finite_differences(case, x64):
    """Along a random direction of every input and of the initial cache."""
    inputs = cast(make_inputs(case, LENGTH, places=8), jnp.float64)
    cache = quick_jit(functools.partial(begin, case))(inputs)
    point = cut(inputs, case, 16, LENGTH) | {"cache": cache}
    weights = random_like(point["v"], 0)

    def loss(point):
        rest = {name: x for name, x in point.items() if name != "cache"}
        return (call(case, rest, initial_cache=point["cache"])[0] * weights).sum()

    def moved(x, by):
        return x + by if is_float(x) else x

    run = quick_jit(loss)
    gradient = quick_jit(jax.grad(loss, allow_int=True))(point)
    for name in point:
        direction = random_like(point[name], 1)

        ends = []
        # Larger steps show the curvature: the gap to the gradient falls with the step squared.
        for step in (1e-7, -1e-7):
            ahead = jax.tree.map(functools.partial(jnp.multiply, step), direction)
            ends.append(run(point | {name: jax.tree.map(moved, point[name], ahead)}))
        expected = (ends[0] - ends[1]) / 2e-7
        found = sum(
            jnp.vdot(g, d)
            for g, d in zip(
                jax.tree.leaves(gradient[name]), jax.tree.leaves(direction), strict=True
            )
            if is_float(d)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_gradient_through_the_cache_is_that_of_the_whole(case, x64):
    """Two calls joined by the cache have the gradients of one call."""
    inputs = cast(make_inputs(case, LENGTH, places=8), jnp.float64)
    weights = random_like(inputs["v"], 0)[:, 16:]

    def whole(inputs):
        return (call(case, inputs)[0][:, 16:] * weights).sum()

    def in_two(inputs):
        rest = cut(inputs, case, 16, LENGTH)
        return (call(case, rest, initial_cache=begin(case, inputs))[0] * weights).sum()

    found = quick_jit(jax.value_and_grad(in_two))(inputs)
    expected = quick_jit(jax.value_and_grad(whole))(inputs)
    assert_close(found, expected, 1e-10)
