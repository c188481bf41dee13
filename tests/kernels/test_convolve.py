"""The convolution in one pass, on a GPU step by step and on a CPU, against its parts in XLA."""

import jax
import jax.numpy as jnp
import pytest

from mc_jax.kernels.convolve import convolve, convolve_tiles, tiled, worthy_tile
from mc_jax.kernels.triton import no_triton, runs_triton
from mc_jax.model import memory_layer
from mc_jax.model.layers import NORMALISE_EPS, causal_conv, conv_rows, unit
from mc_jax.model.token_blocks import tokens_first, tokens_last
from tests.kernels.gpu import lowered, on_a_gpu
from tests.kernels.reads import TOLERANCE, assert_close


def inputs(length: int, dtype=jnp.float32, head_dim: int = 32):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, length, 3, 3, head_dim), dtype)
    kernel = jax.random.normal(keys[1], (4, 3, 3, head_dim))
    weights = jax.random.normal(keys[2], (3, 2, length, 3, head_dim))
    return kernel, x, weights


def by_parts(kernel, x, tail=None):
    y = jax.nn.silu(conv_rows(kernel, x, tail))
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


def in_tiles(kernel, x, tail=None, tile=16):
    made = convolve_tiles(kernel, x, tail, NORMALISE_EPS, tile)
    return jnp.stack([tokens_first(y) for y in made])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("with_tail", [False, True])
@pytest.mark.parametrize("length", [16, 48])
def test_tiles_equal_parts(length, with_tail, dtype):
    """Of one tile and of several; the gradient of the tail, too."""
    kernel, x, weights = inputs(length, dtype)
    tail = jax.random.normal(jax.random.key(3), (2, 3, *x.shape[2:]), dtype)
    args = (kernel, x, tail) if with_tail else (kernel, x)

    def run(form, args):
        y, back = jax.vjp(lambda *a: form(*a).astype(jnp.float32), *args)
        return y, back(weights)

    exact = jax.tree.map(lambda a: a.astype(jnp.float32), args)
    assert_close(run(in_tiles, args), run(by_parts, exact), TOLERANCE[dtype])


def test_tiles_of_tokens_far_from_0():
    """Beyond what float32 has an exponential of."""
    kernel, x, weights = inputs(48)
    kernel = 100 * kernel
    assert jnp.max(jnp.abs(conv_rows(kernel, x, None))) > 500

    def run(form):
        y, back = jax.vjp(form, kernel, x)
        return y, back(weights)

    assert_close(run(in_tiles), run(by_parts), 2e-5)


def test_the_model_takes_tiles_on_a_cpu(monkeypatch):
    kernel, x, _ = inputs(64)
    monkeypatch.setattr(tiled, "TILES", (32,))
    monkeypatch.setattr(tiled, "SMALLEST", x.size)
    used = []
    whole = memory_layer.convolve_tiles
    monkeypatch.setattr(memory_layer, "convolve_tiles", lambda *a: used.append(1) or whole(*a))
    made = jnp.stack(memory_layer.convolved(kernel, x, None, None))
    assert used
    assert_close(made, by_parts(kernel, x), 2e-5)
    memory_layer.convolved(kernel, x[:, :32], None, None)
    monkeypatch.setattr(tiled, "SMALLEST", 0)
    memory_layer.convolved(kernel, x[:, :33], None, None)
    assert len(used) == 1, "few tokens, or no multiple of a tile, go the other way"


@pytest.mark.parametrize(
    ("length", "dim", "tile"),
    [(8192, 32, 256), (8192, 64, 128), (8192, 128, 64), (4096, 256, 256), (4112, 256, None)],
)
def test_a_tile_is_what_one_core_works_on(length, dim, tile):
    """The most tokens where channels are too many for that."""
    assert worthy_tile((2, length, 3, 4, dim // 4), width=4) == tile


@pytest.mark.parametrize("form", ["tiles", "gpu"])
def test_a_token_that_is_zero_has_finite_gradients(form):
    kernel, x, _ = inputs(48)
    x = x.at[:, :20].set(0)

    def total(x):
        if form == "tiles":
            return jnp.sum(in_tiles(kernel, x))
        return jnp.sum(jnp.stack(convolve(kernel, x, NORMALISE_EPS, True)))

    assert jnp.all(jnp.isfinite(jax.grad(total)(x)))


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
