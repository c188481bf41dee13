"""The read of the online matrix memory on a GPU, step by step, against the equation."""

import jax
import jax.numpy as jnp
import pytest

from mc_jax.kernels.chunk_read import chunk_read, segment_scores, unsupported
from tests.kernels.gpu import lowered
from tests.kernels.reads import TOLERANCE, assert_close


def inputs(chunks: int, chunk_len: int, dtype=jnp.float32, head_dim: int = 32):
    keys = jax.random.split(jax.random.key(0), 3)
    tokens = chunks * chunk_len
    q, k, v, dy = jax.random.normal(keys[0], (4, tokens, head_dim)).astype(dtype)
    states = jax.random.normal(keys[1], (chunks, head_dim, head_dim))
    decay = -0.1 * jax.random.uniform(keys[2], (chunks, chunk_len))
    return (q, k, v, jnp.cumsum(decay, 1).reshape(-1), states), dy


def equation(q, k, v, log_decay, states):
    chunks = states.shape[0]
    q, k, v, logs = (x.reshape(chunks, -1, *x.shape[1:]) for x in (q, k, v, log_decay))
    causal = jnp.tril(jnp.ones((q.shape[1],) * 2, bool))
    decays = jnp.exp(jnp.where(causal, logs[:, :, None] - logs[:, None], -jnp.inf))
    y = jnp.exp(logs)[..., None] * jnp.einsum("coi,cti->cto", states, q)
    y = y + jnp.einsum("ctj,cjo->cto", jnp.einsum("cti,cji->ctj", q, k) * decays, v)
    return y.reshape(-1, y.shape[-1])


def with_gradients(form, args, dy, **options):
    y, back = jax.vjp(lambda *args: form(*args, **options).astype(jnp.float32), *args)
    return y, back(dy.astype(jnp.float32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("chunks", "chunk_len"), [(3, 16), (4, 64), (1, 128), (2, 256)])
def test_equals_the_equation(chunks, chunk_len, dtype):
    args, dy = inputs(chunks, chunk_len, dtype)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), args)
    actual = with_gradients(chunk_read, args, dy, interpret=True)
    assert_close(actual, with_gradients(equation, exact, dy), TOLERANCE[dtype])


def test_decays_that_would_overflow():
    """Masked before exp: `A_t / A_j` of a later token j is infinite."""
    (q, k, v, logs, states), dy = inputs(1, 256)
    args = (q, k, v, 400 * logs, states)
    actual = with_gradients(chunk_read, args, dy, interpret=True)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(actual))
    assert_close(actual, with_gradients(equation, args, dy), 2e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("segments", "segment_len"), [(3, 16), (1, 64), (2, 192)])
def test_scores_are_products_with_running_sums(segments, segment_len, dtype):
    (u, k, *_), _ = inputs(segments, segment_len, dtype)
    dy = jax.random.normal(jax.random.key(1), u.shape[:1])

    def by_sums(u, k):
        by_segment = k.reshape(segments, segment_len, -1)
        return jnp.sum(u * jnp.cumsum(by_segment, 1).reshape(u.shape), 1)

    exact = jax.tree.map(lambda x: x.astype(jnp.float32), (u, k))
    options = {"segment_len": segment_len, "interpret": True}
    actual = with_gradients(segment_scores, (u, k), dy, **options)
    assert actual[0].dtype == jnp.float32
    assert_close(actual, with_gradients(by_sums, exact, dy), TOLERANCE[dtype])


def test_lowers_for_a_gpu():
    args, _ = inputs(2, 256, jnp.bfloat16, 128)
    assert unsupported(256, 128, jnp.bfloat16) is None
    assert "n times 64, not 160" in unsupported(160, 128, jnp.bfloat16)

    def loss(*args):
        return jnp.sum(chunk_read(*args).astype(jnp.float32))

    heads = jax.tree.map(lambda x: jnp.stack([x] * 2), args)
    program = lowered(jax.vmap(jax.grad(loss, (0, 1, 2, 3, 4))), *heads)
    assert "chunk_read_queries" in program
    assert "chunk_read_keys" in program

    def scores(u, k):
        return jnp.sum(segment_scores(u, k, 256))

    program = lowered(jax.vmap(jax.grad(scores, (0, 1))), *heads[:2])
    assert "chunk_read_score_queries" in program
    assert "chunk_read_score_keys" in program
