"""Gradients of many small matrices at once, against those of one memory after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mc_jax.kernels.gates import Router, Scores, visible_memories
from mc_jax.kernels.linear_read import small_matrices, xla
from mc_jax.kernels.linear_read.small_matrices import read_small_matrices, worth_it
from tests.kernels.reads import assert_close

OUT, WIDTH = 3, 4


def arguments(tokens, segment_len, memories, dtype=jnp.float32, first_segment=0):
    keys = jax.random.split(jax.random.key(0), 4)

    def normal(key, *shape):
        return jax.random.normal(key, (2, *shape), dtype)

    visible = visible_memories(memories, tokens, segment_len, first_segment)
    gate = jnp.where(visible, normal(keys[1], memories, tokens), 0)
    args = normal(keys[0], memories, OUT, WIDTH), gate, normal(keys[2], WIDTH, tokens)
    return args, normal(keys[3], OUT, tokens), visible


def run(form, args, cotangent, visible):
    """Of two heads: outputs, and gradients where there are any."""
    y, back = jax.jit(lambda *args: jax.vjp(jax.vmap(form), *args))(*args)
    weights, gate, q = back(cotangent)
    return y, weights, jnp.where(visible, gate, 0), q


def at_once(weights, gate, q):
    return jnp.einsum("nt,noi,it->ot", gate, weights, q)


# Tiles have at most 5 tokens: less than one, one, and several.
@pytest.mark.parametrize("tokens", [3, 5, 12, 83])
@pytest.mark.parametrize("segment_len", [2, 7])
@pytest.mark.parametrize("first_segment", [0, 3])
def test_equal_to_one_sum(tokens, segment_len, first_segment, x64, monkeypatch):
    monkeypatch.setattr(small_matrices, "TILE_NUMBERS", 5 * OUT * WIDTH)
    memories = max(1, first_segment + (tokens - 1) // segment_len)
    facts = memories, jnp.float64, first_segment
    args, cotangent, visible = arguments(tokens, segment_len, *facts)

    def form(weights, gate, q):
        return read_small_matrices(weights, gate, q, segment_len, first_segment)

    found = run(form, args, cotangent, visible)
    assert_close(found, run(at_once, args, cotangent, visible), 1e-12)


def test_fewer_memories_than_segments(monkeypatch):
    monkeypatch.setattr(small_matrices, "TILE_NUMBERS", 5 * OUT * WIDTH)
    args, cotangent, visible = arguments(83, 7, 4)
    found = run(lambda *args: read_small_matrices(*args, 7, 0), args, cotangent, visible)
    assert_close(found, run(at_once, args, cotangent, visible), 1e-5)


def test_sums_over_tiles_are_not_rounded_to_the_type_of_the_memories(monkeypatch):
    monkeypatch.setattr(small_matrices, "TILE_NUMBERS", 5 * OUT * WIDTH)
    (weights, *rest), cotangent, visible = arguments(400, 40, 9)
    weights = weights.astype(jnp.bfloat16)
    found = run(
        lambda *args: read_small_matrices(*args, 40, 0), (weights, *rest), cotangent, visible
    )
    exact = weights.astype(jnp.float32), *rest
    expected = run(at_once, exact, cotangent, visible)
    assert found[1].dtype == jnp.bfloat16
    # Rounded once: within half a unit of bfloat16's last place, elementwise.
    np.testing.assert_allclose(found[1].astype(jnp.float32), expected[1], rtol=2**-8, atol=1e-4)
    assert_close((found[0], *found[2:]), (expected[0], *expected[2:]), 1e-5)


def test_what_is_no_number_stays_with_its_token():
    (weights, gate, q), cotangent, visible = arguments(40, 7, 5)
    q = q.at[0, 0, 0].set(jnp.nan)
    found = run(
        lambda *args: read_small_matrices(*args, 7, 0), (weights, gate, q), cotangent, visible
    )
    y, _, of_gate, of_q = map(np.asarray, found)
    for of_tokens in (y[..., 1:], of_gate[..., 1:], of_q[..., 1:], y[1], of_q[1]):
        assert np.isfinite(of_tokens).all()


# A last segment that is not full, one run that is shorter than the others, two segments, and
# memories that no token sees, or fewer than there are segments.
@pytest.mark.parametrize(
    ("tokens", "memories"), [(83, 16), (66, 13), (10, 4), (61, 20), (83, 5)], ids=str
)
@pytest.mark.parametrize("route", ["router", "top 2", "scores", "none"])
def test_runs_are_one_read(tokens, memories, route, x64, monkeypatch):
    keys = jax.random.split(jax.random.key(1), 7)
    q, weights, u, descriptors, online, scores, of_y = (
        jax.random.normal(key, (2, *shape))
        for key, shape in zip(
            keys,
            [
                *((WIDTH, tokens), (memories, OUT, WIDTH), (WIDTH, tokens), (memories, WIDTH)),
                *((tokens,), (memories, tokens), (OUT, tokens)),
            ],
            strict=True,
        )
    )
    router = {"scores": Scores(online, scores), "none": None}.get(
        route, Router(u, online, descriptors)
    )
    top_k = 2 if route == "top 2" else None

    def read(q, weights, router):
        return jax.vmap(lambda *args: xla.xla(*args, 5, 0, top_k))(q, weights, router)

    def both(runs):
        monkeypatch.setattr(xla, "worth_it", lambda *_: runs)
        results, back = jax.vjp(read, q, weights, router)
        return results, back((of_y, online))

    assert_close(both(True), both(False), 1e-12)


def test_only_where_it_is_faster(monkeypatch):
    assert worth_it(16, (16, 16), jnp.float32)
    assert not worth_it(15, (16, 16), jnp.float32)  # few memories
    assert not worth_it(500, (64, 64), jnp.float32)
    assert not worth_it(500, (16, 16), jnp.bfloat16)  # gates would be rounded
    monkeypatch.setattr(small_matrices, "on_cpu", lambda: False)
    assert not worth_it(16, (16, 16), jnp.float32)


@pytest.mark.parametrize("first_segment, used", [(0, True), (1, False)])
def test_the_read_uses_it_where_the_sequence_starts(first_segment, used, monkeypatch):
    calls = []

    def counted(*args):
        calls.append(args)
        return read_small_matrices(*args)

    monkeypatch.setattr(xla, "read_small_matrices", counted)
    q, weights = jnp.ones((4, 40)), jnp.ones((8, 4, 4))
    xla.xla(q, weights, None, 5, first_segment, None)
    assert bool(calls) == used
