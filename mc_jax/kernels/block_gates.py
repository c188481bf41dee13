"""The gates of one block of tokens, inside a kernel."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mc_jax.kernels.gates import Router
from mc_jax.kernels.tiles import LANES, contract, round_up
from mc_jax.typing import Array

F32 = jnp.float32

# Gates are computed for one, two or more of so many parts of all memories.
PARTS = 4
# Rows of a float32 tile.
TILE = 8


def store_gates(
    top_k: int | None, router: Router | None, seen: Array, most: Array, own: Any, gates: Any
) -> None:
    """Write the gates of a block of tokens.

    Args:
      top_k: memories that a token reads; None for all that it sees.
      router: refs, with online logits [1, tokens]; None where all gates are 1.
      seen: how many memories each token sees [1, tokens].
      most: the largest of these.
      own: ref of the online memory's gates [1, tokens].
      gates: ref of the cached ones' [memories, tokens]; from row `most` on it is left undefined.
    """
    memories = gates.shape[0]
    sizes = {min(round_up(-(-memories * i // PARTS), 8), memories) for i in range(1, PARTS + 1)}
    below = -1
    for rows in sorted(sizes):
        # The fewest rows that hold all that the block sees.
        @pl.when((most > below) & (most <= rows))
        def _(rows: int = rows) -> None:
            own[...], gates[:rows] = _block_gates(top_k, rows, router, seen)

        below = rows


def _block_gates(
    top_k: int | None, memories: int, router: Router | None, seen: Array
) -> tuple[Array, Array]:
    """Gates of the online memory [1, tokens] and of the first cached ones [memories, tokens]."""
    index = lax.broadcasted_iota(jnp.int32, (memories, seen.shape[1]), 0)
    visible = index < seen
    if router is None:
        return jnp.ones(seen.shape, F32), visible.astype(F32)
    logits = _logits(router.descriptors[:memories], router.u[...])
    return _mixing_weights(top_k, router.online[...], logits, visible)


def _mixing_weights(
    top_k: int | None, online: Array, logits: Array, visible: Array
) -> tuple[Array, Array]:
    """Softmax over the online memory and those that a token reads.

    Args:
      top_k: how many it reads; None for all that it sees.
      online: logits of the online memory [1, tokens].
      logits: of the cached ones [memories, tokens].
      visible: which of them a token sees [memories, tokens]. Of equal logits the upper comes first.

    Returns:
      Gates of the online memory and of the cached ones.
    """
    logits = jnp.where(visible, logits, -jnp.inf)
    if top_k is not None and top_k < logits.shape[0]:
        return _weights_of_best(top_k, online, logits)
    most = jnp.maximum(jnp.max(logits, 0, keepdims=True), online)
    cached, own = jnp.exp(logits - most), jnp.exp(online - most)
    scale = 1 / (jnp.sum(cached, 0, keepdims=True) + own)
    return own * scale, cached * scale


def _logits(descriptors: Array, u: Array) -> Array:
    """`<u_t, descriptor_i>` [memories, tokens]; descriptors are not rounded to the type of u."""
    high = descriptors.astype(u.dtype)
    logits = contract(high, u, (1, 0))
    if u.dtype == descriptors.dtype:
        return logits
    low = (descriptors - high.astype(F32)).astype(u.dtype)
    return logits + contract(low, u, (1, 0))


def _weights_of_best(top_k: int, online: Array, logits: Array) -> tuple[Array, Array]:
    """Softmax over the online memory and the `top_k` best cached ones; see `_mixing_weights`.

    In VMEM, what a lane tile of tokens has of one memory is a row. Read back with a stride, a
    memory's tokens fill registers, and those of all memories compare and add without reductions.
    """
    memories, tokens = logits.shape
    whole = round_up(memories, TILE)
    parts = [slice(at, at + LANES) for at in range(0, tokens, LANES)]
    # Rows of one part; odd as a number of tiles, or strided accesses meet in the same banks.
    height = (round_up(whole + 2, TILE) // TILE | 1) * TILE
    starts = range(0, height * len(parts), height)
    places = [pl.ds(i, len(parts), stride=height) for i in range(whole + 2)]

    def weigh(scores: Any, results: Any) -> tuple[Array, Array]:
        for start, part in zip(starts, parts, strict=True):
            scores[start : start + memories] = logits[:, part]
            if memories < whole:
                padding = jnp.full((whole - memories, LANES), -jnp.inf)
                scores[start + memories : start + whole] = padding
            scores[start + whole : start + whole + 1] = online[:, part]
        *cached, own = [scores[place, :] for place in places[:-1]]
        weights, *others = _weights(top_k, own, jnp.stack(cached))
        for place, value in zip(places, [*weights, *others], strict=True):
            results[place, :] = value

        def result(first: int, count: int) -> Array:
            return jnp.concatenate([results[i + first : i + first + count] for i in starts], 1)

        scale = result(whole + 1, 1)
        return result(whole, 1) * scale, result(0, memories) * scale

    room = pltpu.VMEM((height * len(parts), LANES), F32)
    return pl.run_scoped(weigh, room, room)


def _weights(top_k: int, online: Array, cached: Array) -> tuple[Array, Array, Array]:
    """Weights of the cached memories, 0 for those not among the best, and of the online one.

    Args:
      top_k: how many of them are read.
      online: logits of the online memory [...].
      cached: logits of the cached ones [memories, ...]; whole tiles.

    Returns:
      Weights of the cached memories and of the online one, and the inverse of their sum.
    """
    best = _largest(top_k, cached)
    most, last = jnp.maximum(best[0], online), best[-1]
    ties = sum(jnp.where(b == last, 1, 0) for b in best)
    read = (cached > last) | _first(ties, cached == last)
    weights, own = jnp.where(read, jnp.exp(cached - most), 0), jnp.exp(online - most)
    return weights, own, 1 / (jnp.sum(weights, 0) + own)


def _first(count: Array, holds: Array) -> Array:
    """The first `count` places of axis 0 where something holds."""
    ones = _tiles(jnp.where(holds, 1, 0))
    before = [jnp.zeros_like(ones[:, 0])]
    for i in range(TILE):
        before.append(before[-1] + ones[:, i])
    left = [count]
    for in_tile in before[-1]:
        left.append(left[-1] - in_tile)
    fits = jnp.stack(before[:-1], 1) < jnp.stack(left[:-1])[:, None]
    return holds & fits.reshape(holds.shape)


def _largest(count: int, values: Array) -> list[Array]:
    """The largest values of axis 0, in descending order."""
    tiles = _tiles(values)
    # At least 2: fused by XLA on a CPU, an interpreted kernel's plain maximum has come out wrong.
    length = max(2, 1 << (count - 1).bit_length())
    lists = [[tiles[:, i]] for i in range(TILE)]
    while len(lists) > 1:
        lists = [_merged(a, b, length) for a, b in zip(lists[::2], lists[1::2], strict=True)]
    (best,) = lists
    while len(best[0]) > 1:
        if len(best[0]) % 2:
            best = [jnp.concatenate([x, jnp.full_like(x[:1], -jnp.inf)]) for x in best]
        half = len(best[0]) // 2
        best = _merged([x[:half] for x in best], [x[half:] for x in best], length)
    return [x[0] for x in best[:count]]


def _tiles(x: Array) -> Array:
    return x.reshape(-1, TILE, *x.shape[1:])


def _merged(a: list[Array], b: list[Array], most: int) -> list[Array]:
    """The `most` largest of two descending lists of the same length, a power of two."""
    return _descending(a + b[::-1])[:most]


def _descending(values: list[Array]) -> list[Array]:
    """A list that falls and then rises, sorted; its length is a power of two."""
    if len(values) == 1:
        return values
    half = len(values) // 2
    pairs = list(zip(values[:half], values[half:], strict=True))
    larger, smaller = [jnp.maximum(*p) for p in pairs], [jnp.minimum(*p) for p in pairs]
    return _descending(larger) + _descending(smaller)
