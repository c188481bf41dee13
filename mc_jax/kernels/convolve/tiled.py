"""Convolution, SiLU and length 1 in one pass over the tokens, for a CPU.

XLA takes a pass over memory for each of them and for each transposition. Here a tile of tokens goes
through all of them while it is in a core's cache: in rows, with channels side by side as the
projection leaves them, and out with tokens last as memories take them.

XLA takes a quotient once, and sums, products and transpositions again for each of their uses: what
is transposed, or used often, is written as a quotient.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.device import on_cpu
from mc_jax.kernels.in_place import OF_ONE_CORE
from mc_jax.memory.network import accumulator
from mc_jax.typing import Array, Float

# Fewest numbers of a call: fewer stay in the caches as they are, and all cores share each pass.
SMALLEST = 2**19
# Tokens of a tile, the best first: of fewer the pieces are short where tokens lie last.
TILES = (256, 128, 64)


def worthy_tile(shape: tuple[int, ...], width: int) -> int | None:
    """Tokens of the tiles that projected tokens [batch, length, ...] are convolved in.

    None where they are not to be in tiles. A tile is what one core works on, and where the channels
    are too many for that, what stays in the caches.

    Args:
      shape: of the projected tokens.
      width: of the convolution's kernel.
    """
    length, channels = shape[1], math.prod(shape[2:])
    tile = next((tile for tile in TILES if tile * channels <= OF_ONE_CORE), TILES[0])
    divides = length % tile == 0 and width <= tile
    return tile if on_cpu() and divides and math.prod(shape) >= SMALLEST else None


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
    if tail is None:
        tail = jnp.zeros((batch, width - 1, 3, heads, head_dim), x.dtype)
    q, k, v = _convolve(
        (heads, eps),
        kernel.reshape(width, channels).astype(accumulator(x.dtype)),
        x.reshape(batch, -1, tile, channels),
        tail.reshape(batch, width - 1, channels).astype(x.dtype),
    )
    shape = batch, length // tile, heads, head_dim, tile
    return q.reshape(shape), k.reshape(shape), v.reshape(shape)


class _Passed(NamedTuple):
    """What a tile's tokens [tile, channels] are on their way, `silu(z) = z / below`.

    Attributes:
      z: convolved.
      below: `1 + exp(-z)`.
      length: of each head's queries and keys [tile, 3 * heads, 1]; 1 for its values.
    """

    z: Array
    below: Array
    length: Array


def _pass(static: tuple[int, float], kernel: Array, x: Array, before: Array) -> _Passed:
    heads, eps = static
    rows = jnp.concatenate([before, x]).astype(kernel.dtype)
    steps, tile = before.shape[0], x.shape[0]
    z = sum(w * lax.slice_in_dim(rows, steps - i, steps - i + tile) for i, w in enumerate(kernel))
    below = 1 + jnp.exp(-z)
    y = z / below
    length = jnp.where(_normed(heads), jnp.sqrt(_by_head(y * y, heads) + eps), 1)
    return _Passed(z, below, length)


def _heads(x: Array, heads: int) -> Array:
    """Channels by head: those of queries, of keys and of values [tile, 3 * heads, head_dim]."""
    return x.reshape(len(x), 3 * heads, -1)


def _normed(heads: int) -> Array:
    """Which of `_heads` go to length 1."""
    return jnp.arange(3 * heads)[:, None] < 2 * heads


def _by_head(x: Array, heads: int) -> Array:
    """Sums over the channels of each of `_heads` [tile, 3 * heads, 1]."""
    return jnp.sum(_heads(x, heads), -1, keepdims=True)


def _over_tiles(x: Array) -> Array:
    """One axis in place of sequences and their tiles."""
    return x.reshape(-1, *x.shape[2:])


def _before(x: Array, tail: Array) -> Array:
    """The tokens before each tile's first [batch, tiles, width - 1, channels]."""
    steps, tile = tail.shape[1], x.shape[2]
    return jnp.concatenate([tail[:, None], x[:, :-1, tile - steps :]], 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(
    static: tuple[int, float],
    kernel: Float[Array, "width channels"],
    x: Float[Array, "batch tiles tile channels"],
    tail: Float[Array, "batch before channels"],
) -> list[Array]:
    """A third [batch * tiles, channels / 3, tile] each for queries, keys and values."""
    heads, _ = static

    def tile(inputs: tuple[Array, Array]) -> list[Array]:
        z, below, length = _pass(static, kernel, *inputs)
        y = z / (_heads(below, heads) * length).reshape(z.shape)
        return jnp.split(y.T.astype(x.dtype), 3)

    return lax.map(tile, (_over_tiles(x), _over_tiles(_before(x, tail))))


def _forward(
    static: tuple[int, float], kernel: Array, x: Array, tail: Array
) -> tuple[list[Array], tuple]:
    return _convolve(static, kernel, x, tail), (kernel, x, tail)


def _backward(static: tuple[int, float], saved: tuple, cotangents: list[Array]) -> tuple:
    kernel, x, tail = saved
    heads, steps = static[0], tail.shape[1]

    batch, tiles = x.shape[:2]
    all_x, all_before = _over_tiles(x), _over_tiles(_before(x, tail))

    def tile(done: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        of_kernel, of_first, all_rows = state
        index = batch * tiles - 1 - done
        sequence = index // tiles
        x, before, of_y = (
            lax.dynamic_index_in_dim(x, index, 0, keepdims=False)
            for x in (all_x, all_before, all_rows)
        )
        z, below, length = _pass(static, kernel, x, before)
        # Of a vector at length 1, what lies along it has no gradient.
        gate, gated = 1 / below, of_y.astype(kernel.dtype) / below
        along = jnp.where(_normed(heads), _by_head(z * gated, heads) / length**2, 0)
        across = _heads(gated, heads) - _heads(z * gate**2, heads) * along
        of_z = (across * _heads(1 + z * (1 - gate), heads) / length).reshape(z.shape)
        of_x, of_taps = _of_read(kernel, x, jnp.concatenate([of_z, of_first[sequence]]))
        return (
            of_kernel + of_taps,
            lax.dynamic_update_index_in_dim(of_first, of_z[:steps], sequence, 0),
            lax.dynamic_update_index_in_dim(all_rows, of_x, index, 0),
        )

    # Side by side as rows, all at once: cutting the tiles takes a pass over them in any case. The
    # tokens' gradients take their place, tile by tile, the last first.
    of_y = jnp.concatenate([jnp.swapaxes(x, 1, 2) for x in cotangents], 2)
    # Of each sequence's tile that was the last to be done, for the one before it.
    of_first = jnp.zeros((batch, steps, x.shape[-1]), kernel.dtype)
    start = jnp.zeros_like(kernel), of_first, of_y
    of_kernel, of_first, of_x = lax.fori_loop(0, batch * tiles, tile, start)
    # A token before the first is read by the first ones.
    padded = jnp.pad(of_first, ((0, 0), (steps, 0), (0, 0)))
    of_tail, of_taps = jax.vmap(functools.partial(_of_read, kernel))(tail, padded)
    return of_kernel + jnp.sum(of_taps, 0), of_x.reshape(x.shape), of_tail


def _of_read(
    kernel: Array, x: Float[Array, "tokens channels"], of_z: Float[Array, "readers channels"]
) -> tuple[Array, Array]:
    """Gradients of tokens and of the kernel, from those of the first token's reader and all after.

    Readers are as many as tokens and `width - 1` more.
    """
    readers = [lax.slice_in_dim(of_z, i, i + len(x)) for i in range(len(kernel))]
    of_x = sum(w * of_z for w, of_z in zip(kernel, readers, strict=True))
    of_kernel = jnp.stack([jnp.sum(x.astype(kernel.dtype) * of_z, 0) for of_z in readers])
    return of_x.astype(x.dtype), of_kernel


_convolve.defvjp(_forward, _backward)
