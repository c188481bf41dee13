"""Sums and products of columns, or rows, one of each token, where XLA's own are slow on a CPU.

There XLA sums over rows with a stride, which in long rows takes thirty times as long as adding rows
to rows (64 rows of 32,768 tokens), and so it does in the gradients that JAX derives. Sums and
products with a scale are each other's gradients; both are written here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mc_jax.device import on_cpu
from mc_jax.kernels.in_place import scan_tiles
from mc_jax.typing import Array, Float

# Most numbers, measured, that XLA sums as fast in one piece.
WHOLE = 2**17


def column_sums(x: Float[Array, "rows tokens"]) -> Float[Array, " tokens"]:
    """`sum(x, 0)`."""
    return _sums(lambda x: x, x)


def tile_sums(x: Float[Array, "rows tokens"]) -> Float[Array, " tokens"]:
    """`sum(x, 0)` of a tile; on a CPU half of its rows are added to the other half, repeatedly."""
    if not on_cpu() or not len(x):
        return jnp.sum(x, 0)
    odd = []
    while len(x) > 1:
        half = len(x) // 2
        odd += [x[-1]] * (len(x) % 2)
        x = x[:half] + x[half : 2 * half]
    return sum(odd, x[0])


def row_sums(x: Float[Array, "slots width"]) -> Float[Array, " slots"]:
    """`sum(x, 1)`; on a CPU a product with ones."""
    if not on_cpu():
        return jnp.sum(x, 1)
    return x @ jnp.ones(x.shape[1], x.dtype)


@jax.custom_vjp
def inner(
    a: Float[Array, "rows tokens"], b: Float[Array, "rows tokens"]
) -> Float[Array, " tokens"]:
    """`<a_t, b_t>` of every token, of two arrays of one type."""
    return _sums(jnp.multiply, a, b)


inner.defvjp(lambda a, b: (inner(a, b), (a, b)), lambda ab, dy: (dy * ab[1], dy * ab[0]))


@jax.custom_vjp
def scaled(
    scale: Float[Array, " tokens"], x: Float[Array, "rows tokens"]
) -> Float[Array, "rows tokens"]:
    """`scale_t x_t` of every token, in the wider type of the two."""
    return scale * x


def _scaled_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    scale, x = saved
    return inner(dy, x).astype(scale.dtype), (scale * dy).astype(x.dtype)


scaled.defvjp(lambda scale, x: (scaled(scale, x), (scale, x)), _scaled_backward)


def _sums(function: Callable[..., Array], *columns: Array) -> Array:
    """Sums over the rows of what a function of columns gives."""
    if columns[0].size <= WHOLE:
        return jnp.sum(function(*columns), 0)

    def tile(_: None, *columns: Array) -> tuple[None, list[Array]]:
        return None, [tile_sums(function(*columns))[None]]

    return scan_tiles(tile, None, *columns)[1][0][0]
