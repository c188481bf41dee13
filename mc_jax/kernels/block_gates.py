"""The gates of one block of tokens, inside a kernel."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mc_jax.kernels.gates import Router
from mc_jax.kernels.tiles import contract, round_up
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
        logits = _best(logits, top_k)
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


def _best(logits: Array, top_k: int) -> Array:
    """Logits with all but the `top_k` largest of each token at -inf; of equal ones the first."""
    index = lax.broadcasted_iota(jnp.int32, logits.shape, 0)

    def take(_: Any, rest: Array) -> Array:
        return jnp.where(index == _first_of_largest(rest, index), -jnp.inf, rest)

    rest = lax.fori_loop(0, top_k, take, logits, unroll=top_k <= 8)
    return jnp.where(rest == logits, -jnp.inf, logits)


def _first_of_largest(values: Array, index: Array) -> Array:
    """Index of each column's largest value, the first of several [1, tokens]."""
    memories = values.shape[0]
    value, at = values[:TILE], index[:TILE]
    # Tile by tile, the last one perhaps over again in part: equal values stay where they are.
    for start in (min(i, memories - TILE) for i in range(TILE, memories, TILE)):
        tile = slice(start, start + TILE)
        later = values[tile] > value
        value, at = jnp.maximum(value, values[tile]), jnp.where(later, index[tile], at)
    largest = value == jnp.max(value, 0, keepdims=True)
    return jnp.min(jnp.where(largest, at, memories), 0, keepdims=True)
