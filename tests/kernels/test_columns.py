"""Sums and products of columns, against those that JAX derives."""

import jax
import jax.numpy as jnp
import pytest

from mc_jax.kernels import columns, in_place
from mc_jax.kernels.columns import column_sums, inner, row_sums, scaled, tile_sums
from mc_jax.kernels.gates import softmax_beside
from tests.kernels.reads import TOLERANCE, assert_close, heads_and_sequences


@pytest.fixture(params=[True, False], autouse=True)
def device(request, monkeypatch):
    """Tiles of 8 tokens, as of long sequences on a CPU, and one tile, as elsewhere."""
    monkeypatch.setattr(in_place, "TILE", 8)
    monkeypatch.setattr(columns, "WHOLE", 8)
    for module in (columns, in_place):
        monkeypatch.setattr(module, "on_cpu", lambda: request.param)


def numbers(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def run(function, args, cotangent):
    y, back = jax.vjp(function, *args)
    return y, back(cotangent)


@pytest.mark.parametrize("sums", [column_sums, tile_sums])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 64, 96, 127])
def test_column_sums(rows, sums):
    args, cotangent = (numbers(0, rows, 20),), numbers(1, 20)
    expected = run(lambda x: jnp.sum(x, 0), args, cotangent)
    assert_close(run(sums, args, cotangent), expected, TOLERANCE[jnp.float32])


def test_row_sums():
    args, cotangent = (numbers(0, 20, 7),), numbers(1, 20)
    expected = run(lambda x: jnp.sum(x, 1), args, cotangent)
    assert_close(run(row_sums, args, cotangent), expected, TOLERANCE[jnp.float32])


@pytest.mark.parametrize("tokens", [1, 8, 21])
@pytest.mark.parametrize("rows", [0, 1, 6, 16])
def test_inner(rows, tokens):
    args = numbers(0, rows, tokens), numbers(1, rows, tokens)
    cotangent = numbers(2, tokens)
    expected = run(lambda a, b: jnp.sum(a * b, 0), args, cotangent)
    assert_close(run(inner, args, cotangent), expected, TOLERANCE[jnp.float32])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scaled(dtype):
    args = numbers(0, 21), numbers(1, 6, 21).astype(dtype)
    cotangent = numbers(2, 6, 21)
    found = run(scaled, args, cotangent)
    assert [x.dtype for x in found[1]] == [jnp.float32, dtype]
    expected = run(lambda scale, x: scale * x, args, cotangent)
    assert_close(found, expected, TOLERANCE[dtype])


def test_heads_and_sequences_by_vmap():
    args = heads_and_sequences(lambda seed: (numbers(seed, 5, 21), numbers(seed + 9, 5, 21)))
    found = jax.vmap(jax.vmap(inner))(*args)
    assert_close(found, jnp.sum(args[0] * args[1], 2), TOLERANCE[jnp.float32])


@pytest.mark.parametrize("memories", [0, 9])
def test_softmax_and_its_gradient(memories):
    """Also without memories, of a token that sees none, and of one whose memory takes all."""
    online, cached = numbers(0, 21), 3 * numbers(1, memories, 21)
    cached = cached.at[:, 2].set(-jnp.inf).at[4:, 3].set(-jnp.inf).at[1:2, 4].set(1e4)
    cotangent = numbers(2, 21), numbers(3, memories, 21)

    def at_once(online, cached):
        gates = jax.nn.softmax(jnp.concatenate([online[None], cached]), 0)
        return gates[0], gates[1:]

    found = run(softmax_beside, (online, cached), cotangent)
    assert_close(found, run(at_once, (online, cached), cotangent), TOLERANCE[jnp.float32])
