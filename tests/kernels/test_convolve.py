"""The convolution on a GPU, step by step, against its parts in XLA."""

import jax
import jax.numpy as jnp
import pytest

from mc_jax.kernels.convolve import convolve
from mc_jax.kernels.triton import no_triton, runs_triton
from mc_jax.model.layers import NORMALISE_EPS, causal_conv, conv_rows, unit
from mc_jax.model.token_blocks import tokens_first, tokens_last
from tests.kernels.gpu import lowered, on_a_gpu
from tests.kernels.reads import assert_close


def inputs(length: int, dtype=jnp.float32, head_dim: int = 32):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, length, 3, 3, head_dim), dtype)
    kernel = jax.random.normal(keys[1], (4, 3, 3, head_dim))
    weights = jax.random.normal(keys[2], (3, 2, length, 3, head_dim))
    return kernel, x, weights


def by_parts(kernel, x):
    y = jax.nn.silu(conv_rows(kernel, x))
    return jnp.stack([*jnp.unstack(unit(y[:, :, :2]), axis=2), y[:, :, 2]])


@pytest.mark.parametrize("length", [1, 64, 100])
def test_equals_its_parts(length):
    kernel, x, weights = inputs(length)

    def on_kernel(kernel, x):
        return jnp.stack([jnp.moveaxis(y, 1, 2) for y in convolve(kernel, x, NORMALISE_EPS, True)])

    def run(form):
        y, back = jax.vjp(form, kernel, x)
        return y, back(weights)

    assert_close(run(on_kernel), run(by_parts), 2e-5)


def test_a_token_that_is_zero_has_finite_gradients():
    kernel, x, weights = inputs(40)
    x = x.at[:, :20].set(0)
    dx = jax.grad(lambda x: jnp.sum(jnp.stack(convolve(kernel, x, NORMALISE_EPS, True))))(x)
    assert jnp.all(jnp.isfinite(dx))


@pytest.mark.parametrize("length", [5, 512])
@pytest.mark.parametrize("with_tail", [False, True])
def test_rows_equal_blocks(length, with_tail):
    """The forms of a GPU and of all other devices."""
    kernel, x, _ = inputs(length)
    tail = jax.random.normal(jax.random.key(3), (2, 3, 3, 3, 32)) if with_tail else None
    blocks = tokens_first(causal_conv(kernel, tokens_last(x, 3), tail))
    assert_close(conv_rows(kernel, x, tail), blocks, 1e-6)


def test_lowers_for_a_gpu():
    kernel, x, weights = inputs(100, jnp.bfloat16, 128)
    with on_a_gpu():
        assert runs_triton(None, no_triton(x.dtype, 128))
        assert not runs_triton("xla", no_triton(x.dtype, 128))
        assert not runs_triton(None, no_triton(jnp.float32, 128))
    assert not runs_triton(None, no_triton(x.dtype, 128))

    def loss(kernel, x):
        y = jnp.stack([jnp.moveaxis(y, 1, 2) for y in convolve(kernel, x, NORMALISE_EPS)])
        return jnp.sum(y * weights)

    program = lowered(jax.grad(loss, (0, 1)), kernel, x)
    assert program.count("xla.gpu.triton") == 1, "what the forward pass makes is not needed"
    assert "_backward" in program
