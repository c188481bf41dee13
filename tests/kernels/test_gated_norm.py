"""Norm and output gate in one pass, against Flax's norm and SiLU."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from mc_jax.kernels import gated_norm
from mc_jax.model.layers import GatedNorm
from tests.kernels.reads import TOLERANCE, assert_close

HEADS, HEAD_DIM = 3, 5


def inputs(length: int, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (2, length, HEADS, HEAD_DIM)
    y, gate, weights = (3 * jax.random.normal(key, shape) for key in keys[:3])
    return y.astype(dtype), gate.astype(dtype), 1 + jax.random.normal(keys[3], (HEAD_DIM,)), weights


def by_parts(y, gate, scale):
    return nn.RMSNorm().apply({"params": {"scale": scale}}, y) * nn.silu(gate)


def in_tiles(y, gate, scale):
    return gated_norm.gated_norm(y, gate, scale, nn.RMSNorm.epsilon)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("length", [1, 8, 24, 36])
def test_equals_its_parts(length, dtype, monkeypatch):
    """Of one tile and of several for each sequence, values and all gradients."""
    monkeypatch.setattr(gated_norm, "SMALLEST_TILE", 8)
    *args, weights = inputs(length, dtype)

    def run(form, args):
        z, back = jax.vjp(lambda *a: form(*a).astype(jnp.float32), *args)
        return z, back(weights)

    exact = jax.tree.map(lambda a: a.astype(jnp.float32), args)
    assert_close(run(in_tiles, args), run(by_parts, exact), TOLERANCE[dtype])


def test_one_core_works_on_a_tile_of_few_channels():
    """All cores on one of many."""
    assert gated_norm.tile_of(4096, channels=128) == 256
    assert gated_norm.tile_of(4096, channels=256) == 1024
    assert gated_norm.tile_of(512, channels=256) == 512


def test_reads_of_nothing_have_finite_gradients():
    y, gate, scale, weights = inputs(16)
    y = y.at[:, :5].set(0)
    gradients = jax.grad(lambda *a: jnp.sum(in_tiles(*a) * weights), (0, 1, 2))(y, gate, scale)
    assert all(jnp.all(jnp.isfinite(g)) for g in gradients)


def test_gates_far_from_0():
    """Beyond what float32 has an exponential of."""
    y, _, scale, weights = inputs(16)
    gate = jnp.resize(jnp.array([-1e4, -100, -88, -20, 20, 100, 1e4]), y.shape)

    def run(form):
        z, back = jax.vjp(form, y, gate, scale)
        return z, back(weights)

    assert_close(run(in_tiles), run(by_parts), 2e-5)


def test_the_model_takes_tiles_on_a_cpu(monkeypatch):
    y, gate, scale, _ = inputs(64)
    norm, params = GatedNorm(jnp.float32), {"params": {"scale": scale}}
    used = []
    whole = gated_norm.gated_norm
    monkeypatch.setattr(gated_norm, "gated_norm", lambda *a: used.append(1) or whole(*a))
    monkeypatch.setattr(gated_norm, "SMALLEST_TILE", 32)
    plain = norm.apply(params, y, gate)
    assert not used, "few tokens"
    assert_close(plain, by_parts(y, gate, scale), 1e-6)
    monkeypatch.setattr(gated_norm, "SMALLEST", y.size)
    assert_close(norm.apply(params, y, gate), plain, 2e-5)
    assert used
    monkeypatch.setattr(gated_norm, "SMALLEST", 0)
    norm.apply(params, y[:, :48], gate[:, :48])
    assert len(used) == 1, "a tile of 16 tokens is none"
    assert jax.tree.map(jnp.shape, norm.init(jax.random.key(0), y, gate)) == (
        jax.tree.map(jnp.shape, params)
    ), "parameters of one name, whichever the form"


@pytest.mark.parametrize("smallest", [0, jnp.inf], ids=["tiles", "whole"])
def test_the_result_has_the_type_of_the_layer(smallest, monkeypatch):
    """In tiles and without."""
    monkeypatch.setattr(gated_norm, "SMALLEST", smallest)
    y, gate, scale, _ = inputs(gated_norm.SMALLEST_TILE)
    narrow = GatedNorm(jnp.bfloat16).apply({"params": {"scale": scale}}, y, gate)
    assert narrow.dtype == jnp.bfloat16
    assert_close(narrow, by_parts(y, gate, scale), TOLERANCE[jnp.bfloat16])
