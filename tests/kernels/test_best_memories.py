"""The highest logits of each token, and whose they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mc_jax.kernels.best_memories import MOST_ROUNDS, best_memories, largest
from mc_jax.kernels.gates import visible_memories


def logits_with_ties(memories, tokens=50):
    rng = np.random.default_rng(0)
    values = rng.integers(-3, 3, size=(memories, tokens)).astype(np.float32)
    return jnp.where(rng.uniform(size=values.shape) < 0.3, -jnp.inf, values)


@pytest.mark.parametrize("memories", [1, 2, 9, 130])
@pytest.mark.parametrize("top_k", [1, 2, MOST_ROUNDS, MOST_ROUNDS + 1])
def test_largest_is_top_k(memories, top_k):
    """Ties and memories that nobody sees included, of which some tokens see nothing else."""
    logits = logits_with_ties(memories).at[:, 3].set(-jnp.inf)
    top_k = min(top_k, memories)
    values, indices = largest(logits, top_k)
    expected, where = lax.top_k(logits.T, top_k)
    np.testing.assert_array_equal(values, expected.T)
    there = np.asarray(-jnp.inf < expected.T)
    np.testing.assert_array_equal(np.where(there, indices, -1), np.where(there, where.T, -1))


def test_what_is_not_a_number_comes_first():
    logits = jnp.array([[1.0, 5.0], [jnp.nan, -jnp.inf], [3.0, jnp.nan]])
    values, indices = largest(logits, 2)
    np.testing.assert_array_equal(values, [[jnp.nan, jnp.nan], [3.0, 5.0]])
    np.testing.assert_array_equal(indices, [[1, 2], [2, 0]])


def test_gradients_are_those_of_the_chosen_logits():
    keys = jax.random.split(jax.random.key(0), 4)
    u, descriptors = jax.random.normal(keys[0], (8, 700)), jax.random.normal(keys[1], (12, 8))
    visible = jax.random.uniform(keys[2], (12, 700)) < 0.5
    weight = jax.random.normal(keys[3], (3, 700))

    def loss(u, descriptors):
        best, _ = best_memories(3, u, descriptors, visible)
        return jnp.sum(jnp.where(best > -jnp.inf, best, 0) * weight)

    def expected(u, descriptors):
        best, _ = lax.top_k(jnp.where(visible, descriptors @ u, -jnp.inf).T, 3)
        return jnp.sum(jnp.where(best > -jnp.inf, best, 0).T * weight)

    found, exact = (jax.grad(f, (0, 1))(u, descriptors) for f in (loss, expected))
    for x, y in zip(found, exact, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [40, 700, 1500])
def test_earlier_tokens_are_scored_against_fewer(tokens):
    """Nothing changes, where the mask says what the segments' length does."""
    keys = jax.random.split(jax.random.key(1), 3)
    u, descriptors = jax.random.normal(keys[0], (8, tokens)), jax.random.normal(keys[1], (12, 8))
    weight = jax.random.normal(keys[2], (3, tokens))
    visible = visible_memories(12, tokens, 64, 0)

    def loss(u, descriptors, segment_len):
        best, memory = best_memories(3, u, descriptors, visible, segment_len)
        return jnp.sum(jnp.where(best > -jnp.inf, best, 0) * weight), (best, memory)

    run = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (_, chosen), gradients = run(u, descriptors, 64)
    (_, expected), exact = run(u, descriptors, None)
    for x, y in zip((*chosen, *gradients), (*expected, *exact), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
