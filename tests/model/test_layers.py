"""The small layers against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mc_jax.model import token_blocks
from mc_jax.model.attention import Attention, rotary
from mc_jax.model.layers import SwiGLU, causal_conv, unit
from mc_jax.model.memory_layer import MemoryLayer
from mc_jax.model.token_blocks import tokens_first, tokens_last

from . import tiny


@pytest.mark.parametrize("length, block_len", [(1, 1), (2, 2), (6, 6), (6, 3), (12, 4)])
def test_conv_is_the_causal_sum_across_blocks(length, block_len, monkeypatch):
    monkeypatch.setattr(token_blocks, "BLOCK_LEN", block_len)
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, length, 3, 5)), rng.normal(size=(4, 3, 5))
    blocks = tokens_last(jnp.asarray(x, jnp.float32), reach=3)
    assert blocks.shape == (2, length // block_len, 3, 5, block_len)
    found = tokens_first(causal_conv(jnp.asarray(kernel), blocks))
    expected = np.zeros_like(x)
    for t in range(length):
        for i in range(min(4, t + 1)):
            expected[:, t] += kernel[i] * x[:, t - i]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("length, reach", [(300, 3), (512, 257)])
def test_what_blocks_do_not_suit_is_one_block(length, reach):
    x = jnp.arange(2 * length * 3.0).reshape(2, length, 3)
    blocks = tokens_last(x, reach)
    assert blocks.shape == (2, 1, 3, length)
    np.testing.assert_array_equal(tokens_first(blocks), x)


def test_a_memory_layer_is_the_same_in_blocks(monkeypatch):
    layer = MemoryLayer(tiny.config())
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 24, 8)), jnp.float32)
    params = layer.init(jax.random.key(0), x)
    whole, _ = layer.apply(params, x)
    monkeypatch.setattr(token_blocks, "BLOCK_LEN", 8)
    np.testing.assert_allclose(layer.apply(params, x)[0], whole, atol=1e-5)


def test_unit_has_length_one_and_a_finite_gradient_at_zero():
    x = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    expected = x / np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(unit(x), expected, atol=1e-5)
    assert np.isfinite(jax.grad(lambda x: unit(x)[0])(jnp.zeros(3))).all()


def test_rotary_products_depend_on_the_distance():
    q, k = np.random.default_rng(0).normal(size=(2, 8))
    both = rotary(jnp.broadcast_to(np.stack([q, k]), (1, 9, 2, 8)).astype(jnp.float32), 50.0)[0]
    products = np.asarray(both[:, 0] @ both[:, 1].T)
    for distance in range(-8, 9):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    np.testing.assert_allclose(products[0, 0], q @ k, atol=1e-5)
    assert np.ptp(products[0]) > 0.1
    # By the formula: the pair (i, i + 4) turns by position * theta^(-2i / 8).
    angle = 3 * 50.0 ** (-np.arange(4) / 4)
    turned = (q[:4] + 1j * q[4:]) * np.exp(1j * angle)
    expected = np.concatenate([turned.real, turned.imag])
    np.testing.assert_allclose(both[3, 0], expected, atol=1e-5)


@pytest.mark.parametrize("sliding", [False, True])
def test_attention_is_the_masked_softmax(sliding):
    config = tiny.config(attention=dict(window=3, rope_theta=100.0))
    x = np.random.default_rng(0).normal(size=(2, 7, 8)).astype(np.float32)
    layer = Attention(config, sliding=sliding)
    variables = tiny.quick_jit(layer.init)(jax.random.key(0), x)
    params = jax.tree.map(np.asarray, variables["params"])
    qkv = np.einsum("blm,mnhd->nblhd", x, params["qkv"]["kernel"])
    q, k = (np.asarray(rotary(x, 100.0)) for x in qkv[:2])
    back = np.arange(7)[:, None] - np.arange(7)
    seen = (back >= 0) & (back < (3 if sliding else 7))
    weights = np.exp(np.einsum("blhd,bmhd->bhlm", q, k) / 4**0.5) * seen
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("bhlm,bmhd->blhd", weights, qkv[2])
    expected = np.einsum("blhd,hdm->blm", y, params["out"]["kernel"])
    np.testing.assert_allclose(tiny.quick_jit(layer.apply)(variables, x)[0], expected, atol=1e-5)


def test_swiglu_is_its_formula():
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    layer = SwiGLU(tiny.config())
    variables = tiny.quick_jit(layer.init)(jax.random.key(0), x)
    params = variables["params"]
    gate, value = np.moveaxis(np.asarray(params["in"]["kernel"]), 1, 0)
    hidden = (x @ gate) / (1 + np.exp(-(x @ gate))) * (x @ value)
    expected = hidden @ params["out"]["kernel"]
    np.testing.assert_allclose(tiny.quick_jit(layer.apply)(variables, x), expected, atol=1e-5)
