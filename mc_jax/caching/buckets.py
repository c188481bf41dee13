"""Logarithmic segmentation: the prefix of a segment as the binary digits of its index.

A token in segment s reads one bucket for every digit 1 of s. The bucket of level l covers the 2^l
segments that end at `(s >> l) << l`, as in a Fenwick tree. A slot of the cache is a level.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mc_jax.caching.cache import Memory
from mc_jax.caching.options import Options
from mc_jax.memory.rule import Rule, select
from mc_jax.typing import Array

Combine = Callable[[Any, Any], Any]


def merge(older: Memory, newer: Memory) -> Memory:
    """Memory of two neighbouring spans of a linear memory: the older one decays by the newer's."""
    keep = jnp.exp(newer.log_decay)[..., None, None]
    weights = jax.tree.map(lambda old, new: keep * old + new, older.weights, newer.weights)
    return Memory(weights, older.log_decay + newer.log_decay)


def newer(older: Any, newer: Any) -> Any:
    """In checkpoint mode the snapshot at the end of the span holds all of it."""
    return newer


def combine_for(rule: Rule, options: Options) -> Combine | None:
    """How two neighbouring buckets of memories become one; None if only their tokens can."""
    if not options.resets:
        return newer
    return merge if rule.merges else None


def mean(older: Any, newer: Any) -> Any:
    """Descriptor of two neighbouring spans of equal length."""
    return jax.tree.map(lambda x, y: (x + y) / 2, older, newer)


def digit(segment: Array, level: int) -> Array:
    """Whether the prefix of `segment` has a bucket of this level."""
    return (segment >> level) & 1 == 1


def tables(cached: Any, ends: list, levels: int, combine: Combine | None) -> list:
    """Buckets of every level that end within a call, beside those from before it.

    Args:
      cached: the buckets before the call, levels first.
      ends: what ends with each segment of the call [segments, ...]: for every level, or for
        level 0 alone with `combine`.
      levels: how many levels.
      combine: joins two neighbouring buckets of one level into one of the next.

    Returns:
      For each level a table [1 + segments, ...]: row 0 is the cached bucket, row 1 + i the bucket
      that ends with the call's segment i, meaningful where one does.
    """
    found: list = []
    for level in range(levels):
        if not level or combine is None:
            new = ends[level]
        else:
            rows = jnp.arange(1, 1 + jax.tree.leaves(ends[0])[0].shape[0])
            # The first half ended 2^(level-1) segments ago, perhaps before the call.
            first = jnp.maximum(rows - 2 ** (level - 1), 0)
            new = combine(*(jax.tree.map(lambda x, r=r: x[r], found[-1]) for r in (first, rows)))
        found.append(
            jax.tree.map(
                lambda c, e, level=level: jnp.concatenate([c[level][None], e]), cached, new
            )
        )
    return found


def rows_for(table: Any, segment: Array, first: Array | int, level: int) -> Any:
    """The level's buckets that segments read, zeros where they read none.

    Args:
      table: from `tables`.
      segment: absolute indices of the segments, any shape.
      first: absolute index of the call's first segment.
      level: the level.
    """
    seen = digit(segment, level)
    row = jnp.maximum(((segment >> level) << level) - first, 0)

    def pick(x: Array) -> Array:
        return jnp.where(seen.reshape(seen.shape + (1,) * (x.ndim - 1)), x[row], 0)

    return jax.tree.map(pick, table)


def push(cached: Any, ends: list, completed: Array, levels: int, combine: Combine | None) -> Any:
    """Buckets after one more segment: a binary counter's increment.

    Args:
      cached: the buckets before, levels first.
      ends: what ends with the segment: for every level, or for level 0 alone with `combine`.
      completed: number of completed segments, this one included.
      levels: how many levels.
      combine: joins two neighbouring buckets.
    """
    after: list = []
    new = ends[0]
    for level in range(levels):
        old = jax.tree.map(lambda x, level=level: x[level], cached)
        new = ends[level] if combine is None else new
        kept = select(digit(completed, level), old, jax.tree.map(jnp.zeros_like, old))
        # This level is written where the count's lowest digit 1 stands.
        written = completed % 2 ** (level + 1) == 2**level
        after.append(select(written, new, kept))
        new = new if combine is None else combine(old, new)
    return jax.tree.map(lambda *x: jnp.stack(x), *after) if after else cached
