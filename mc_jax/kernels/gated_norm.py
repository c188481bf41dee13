"""Norm and output gate of what heads read, in one pass over the tokens, for a CPU.

Memories give their reads with tokens last, and the projection after them takes channels last. XLA
would fuse norm and gate into that transposition, and their gradients into its inverse, which go
through memory once for every channel. Here a tile of tokens goes through all of it, and what is
transposed is a quotient: XLA takes one once, and sums and products again for each of their uses.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.device import on_cpu
from mc_jax.kernels.in_place import OF_ONE_CORE
from mc_jax.memory.network import accumulator
from mc_jax.typing import Array, Float

# Most and fewest tokens of a tile. One core works on the fewest where channels are few; else all
# cores share the work on the most.
LARGEST_TILE, SMALLEST_TILE = 1024, 256
# Fewest numbers of a call: fewer stay in the caches as they are.
SMALLEST = 2**18


def tile_of(length: int, channels: int) -> int:
    """Tokens of a tile of a sequence."""
    alone = SMALLEST_TILE * channels <= OF_ONE_CORE
    return math.gcd(length, SMALLEST_TILE if alone else LARGEST_TILE)


def worth_tiling(shape: tuple[int, ...]) -> bool:
    """Whether to work on reads [batch, length, heads, head_dim] in tiles."""
    whole = tile_of(shape[1], math.prod(shape[2:])) >= SMALLEST_TILE
    return on_cpu() and whole and math.prod(shape) >= SMALLEST


def gated_norm(
    y: Float[Array, "batch length heads head_dim"],
    gate: Float[Array, "batch length heads head_dim"],
    scale: Float[Array, " head_dim"],
    eps: float,
) -> Float[Array, "batch length heads head_dim"]:
    """`scale y / sqrt(mean(y²) + eps) * silu(gate)`, the mean over a head; in float32.

    Args:
      y: what heads read, as the core gives it: made with tokens last.
      gate: as a projection gives it. The result has its type.
      scale: of the norm.
      eps: see above.
    """
    batch, length, heads, head_dim = y.shape
    columns = jnp.moveaxis(y, 1, -1).reshape(batch, heads * head_dim, length)
    scales = jnp.tile(scale.astype(accumulator(y.dtype)), heads)
    z = _gated_norm((heads, eps), columns, gate.reshape(batch, length, -1), scales)
    return z.reshape(gate.shape)


class _Place(NamedTuple):
    """A tile: its sequence, its first token, how many they are."""

    sequence: Array
    first: Array
    tile: int

    def columns(self, x: Float[Array, "batch channels length"]) -> Array:
        return lax.dynamic_slice(x, (self.sequence, 0, self.first), (1, x.shape[1], self.tile))[0]

    def rows(self, x: Float[Array, "batch length channels"]) -> Array:
        return lax.dynamic_slice(x, (self.sequence, self.first, 0), (1, self.tile, x.shape[2]))[0]

    def put_columns(self, x: Float[Array, "batch channels length"], tile: Array) -> Array:
        tile = tile.astype(x.dtype)[None]
        return lax.dynamic_update_slice(x, tile, (self.sequence, 0, self.first))

    def put_rows(self, x: Float[Array, "batch length channels"], tile: Array) -> Array:
        tile = tile.astype(x.dtype)[None]
        return lax.dynamic_update_slice(x, tile, (self.sequence, self.first, 0))


def _over_tiles(columns: Array, step: Callable[[_Place, Any], Any], state: Any) -> Any:
    """The state after a step for each tile of columns [batch, channels, length]."""
    batch, channels, length = columns.shape
    tile = tile_of(length, channels)
    tiles = length // tile

    def body(index: Array, state: Any) -> Any:
        return step(_Place(index // tiles, index % tiles * tile, tile), state)

    return lax.fori_loop(0, batch * tiles, body, state)


def _of_heads(function: Callable[..., Array], heads: int, columns: Array) -> Array:
    """`function` over the channels of each head, for all of them [channels, tokens]."""
    by_head = columns.reshape(heads, -1, columns.shape[1])
    made = function(by_head, axis=1, keepdims=True)
    return jnp.broadcast_to(made, by_head.shape).reshape(columns.shape)


def _norm(static: tuple[int, float], y: Array) -> tuple[Array, Array]:
    """Normed columns, and what they were multiplied by."""
    heads, eps = static
    factor = lax.rsqrt(_of_heads(jnp.mean, heads, y * y) + eps)
    return y * factor, factor


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gated_norm(static: tuple[int, float], y: Array, gate: Array, scale: Array) -> Array:
    """Rows [batch, length, channels] of columns y [batch, channels, length] and rows of gates."""

    def step(place: _Place, result: Array) -> Array:
        normed, _ = _norm(static, place.columns(y).astype(scale.dtype))
        opened = jax.nn.silu(place.rows(gate).astype(scale.dtype))
        return place.put_rows(result, normed.T * scale * opened)

    return _over_tiles(y, step, jnp.zeros_like(gate))


def _forward(
    static: tuple[int, float], y: Array, gate: Array, scale: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    return _gated_norm(static, y, gate, scale), (y, gate, scale)


def _backward(
    static: tuple[int, float], saved: tuple[Array, Array, Array], of_result: Array
) -> tuple[Array, Array, Array]:
    y, gate, scale = saved

    def step(place: _Place, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        of_y, of_gate, of_scale = state
        normed, factor = _norm(static, place.columns(y).astype(scale.dtype))
        z, cotangent = (place.rows(x).astype(scale.dtype) for x in (gate, of_result))
        below = 1 + jnp.exp(-z)
        rows, opened = normed.T, 1 / below
        of_z = cotangent * rows * scale * opened * (1 + z * (1 - opened))
        of_rows = cotangent * z / below
        of_normed = of_rows.T * scale[:, None]
        # What lies along a normed vector does not change it.
        along = _of_heads(jnp.mean, static[0], of_normed * normed)
        return (
            place.put_columns(of_y, (of_normed - normed * along) * factor),
            place.put_rows(of_gate, of_z),
            of_scale + jnp.sum(of_rows * rows, 0),
        )

    return _over_tiles(y, step, (jnp.zeros_like(y), jnp.zeros_like(gate), jnp.zeros_like(scale)))


_gated_norm.defvjp(_forward, _backward)
