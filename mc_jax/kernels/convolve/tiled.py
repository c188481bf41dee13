"""Convolution, SiLU and length 1 in one pass over the tokens, for a CPU.

XLA takes a pass over memory for each of them and for each transposition. Here a tile of tokens goes
through all of them while it is in a core's cache: in rows, with channels side by side as the
projection leaves them, and out with tokens last as memories take them.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.kernels.chips import on_cpu
from mc_jax.memory.network import accumulator
from mc_jax.typing import Array, Float

# Fewest numbers of a call: fewer stay in the caches as they are, and all cores share each pass.
SMALLEST = 2**19


def worth_tiling(shape: tuple[int, ...], width: int, tile: int) -> bool:
    """Whether to convolve projected tokens of a shape in tiles, by a kernel of a width."""
    divides = shape[1] % tile == 0 and width <= tile
    return on_cpu() and divides and math.prod(shape) >= SMALLEST


def convolve_tiles(
    kernel: Float[Array, "width 3 heads head_dim"],
    x: Float[Array, "batch length 3 heads head_dim"],
    tail: Float[Array, "batch before 3 heads head_dim"] | None,
    eps: float,
    tile: int,
) -> tuple[Array, Array, Array]:
    """Queries, keys and values [batch, tiles, heads, head_dim, tile].

    `y_t = silu(sum_i w_i x_{t-i})`, and of queries and keys `y / sqrt(|y|² + eps)`, in float32.

    Args:
      kernel: w.
      x: projected tokens: for queries, keys and values.
      tail: the `width - 1` tokens before the first; None for zeros.
      eps: see above.
      tile: tokens of a tile; the length is a multiple of it.
    """
    width, _, heads, head_dim = kernel.shape
    batch, length = x.shape[:2]
    channels = 3 * heads * head_dim
    tiles = x.reshape(batch, -1, tile, channels)
    if tail is None:
        tail = jnp.zeros((batch, width - 1, 3, heads, head_dim), x.dtype)
    first = tail.reshape(batch, 1, width - 1, channels).astype(x.dtype)
    before = jnp.concatenate([first, tiles[:, :-1, tile - width + 1 :]], 1)
    q, k, v = _convolve(
        (heads, eps),
        kernel.reshape(width, channels).astype(accumulator(x.dtype)),
        tiles.reshape(-1, tile, channels),
        before.reshape(-1, width - 1, channels),
    )
    shape = batch, length // tile, heads, head_dim, tile
    return q.reshape(shape), k.reshape(shape), v.reshape(shape)


class _Passed(NamedTuple):
    """What a tile's tokens [tile, channels] are on their way.

    Attributes:
      taps: the tokens that each step back of the convolution reads.
      z: convolved.
      gate: `sigmoid(z)`.
      y: `silu(z)`.
      scale: one over the length, of queries and keys [tile, 2 * heads].
    """

    taps: list[Array]
    z: Array
    gate: Array
    y: Array
    scale: Array


def _pass(static: tuple[int, float], kernel: Array, x: Array, before: Array) -> _Passed:
    heads, eps = static
    rows = jnp.concatenate([before, x]).astype(kernel.dtype)
    steps, tile = before.shape[0], x.shape[0]
    taps = [lax.slice_in_dim(rows, steps - i, steps - i + tile) for i in range(steps + 1)]
    z = sum(w * rows for w, rows in zip(kernel, taps, strict=True))
    gate = jax.nn.sigmoid(z)
    y = z * gate
    return _Passed(taps, z, gate, y, lax.rsqrt(_by_head(y * y, heads) + eps))


def _by_head(x: Array, heads: int) -> Array:
    """Sums over the channels of each head, of queries and keys."""
    of_both = x[:, : x.shape[1] // 3 * 2]
    return jnp.sum(of_both.reshape(x.shape[0], 2 * heads, -1), -1)


def _to_channels(x: Array, channels: int, of_values: float) -> Array:
    """The inverse of `_by_head`: each head's number for its channels, and one for all values."""
    of_both = jnp.repeat(x, channels * 2 // (3 * x.shape[1]), 1)
    return jnp.concatenate([of_both, jnp.full((x.shape[0], channels // 3), of_values, x.dtype)], 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(static: tuple[int, float], kernel: Array, x: Array, before: Array) -> list[Array]:
    """A third [tiles, channels / 3, tile] each for queries, keys and values."""

    def tile(inputs: tuple[Array, Array]) -> list[Array]:
        passed = _pass(static, kernel, *inputs)
        y = passed.y * _to_channels(passed.scale, kernel.shape[1], 1.0)
        return jnp.split(y.T.astype(x.dtype), 3)

    return lax.map(tile, (x, before))


def _forward(
    static: tuple[int, float], kernel: Array, x: Array, before: Array
) -> tuple[list[Array], tuple]:
    return _convolve(static, kernel, x, before), (kernel, x, before)


def _backward(static: tuple[int, float], saved: tuple, cotangents: list[Array]) -> tuple:
    kernel, x, before = saved
    heads, channels, steps = static[0], kernel.shape[1], before.shape[1]

    def tile(of_kernel: Array, inputs: tuple) -> tuple[Array, tuple[Array, Array]]:
        x, before, cotangents = inputs
        passed = _pass(static, kernel, x, before)
        of_y = jnp.concatenate(cotangents).T.astype(kernel.dtype)
        # Of a vector at length 1, what lies along it has no gradient.
        along = _by_head(passed.y * of_y, heads) * passed.scale**2
        of_y = of_y - passed.y * _to_channels(along, channels, 0.0)
        of_y = of_y * _to_channels(passed.scale, channels, 1.0)
        of_z = of_y * passed.gate * (1 + passed.z * (1 - passed.gate))
        of_taps = jnp.stack([jnp.sum(of_z * rows, 0) for rows in passed.taps])
        padded = jnp.pad(of_z, ((steps, steps), (0, 0)))
        of_rows = sum(
            w * lax.slice_in_dim(padded, i, i + steps + x.shape[0]) for i, w in enumerate(kernel)
        )
        of_before, of_x = of_rows[:steps], of_rows[steps:]
        return of_kernel + of_taps, (
            of_x.astype(x.dtype),
            of_before.astype(x.dtype),
        )

    of_kernel, (of_x, of_before) = lax.scan(tile, jnp.zeros_like(kernel), (x, before, cotangents))
    return of_kernel, of_x, of_before


_convolve.defvjp(_forward, _backward)
