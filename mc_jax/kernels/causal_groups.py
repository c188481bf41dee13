"""Sums over memories in XLA, of which a token reads those before its own segment."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.typing import Array, Float, Int

# Most groups of memories that a fresh sequence is read in: the tokens before a group are left out.
# With eight of them a ninth of the reads are of memories that a token does not see yet; without,
# half. Each is compiled by itself, so that a group of one memory would not be worth it, nor one
# that does not fill a product.
GROUPS = 8


def extent(
    memories: int, tokens: int, segment_len: int, first_segment: Int[Array, ""] | int
) -> tuple[int, int]:
    """How many of the memories some token may see, and their stride for `sum_over_memories`."""
    if isinstance(first_segment, int) and first_segment == 0:
        return min(memories, (tokens - 1) // segment_len), segment_len
    return memories, 0


def sum_over_memories(
    add: Callable[[Any, Any, Array], Array],
    memories: tuple[Any, Float[Array, "memories tokens"]],
    x: Float[Array, "in tokens"],
    stride: int,
    at_once: int = 0,
) -> Float[Array, "out tokens"]:
    """Sum over all memories; each group is read by the tokens that may see it.

    Args:
      add: `add(y, memory, x)` adds one memory's read, or a block's, to the outputs.
      memories: weights [memories, ...] and their gates, 0 where a token sees no memory.
      x: inputs.
      stride: tokens between two memories if memory i is first seen by token `(i + 1) * stride`;
        0 if every memory may be seen by every token.
      at_once: memories of a block; 0 for one memory without the block's axis.
    """
    count = memories[1].shape[0]
    per_group = max(2, at_once, -(-count // GROUPS)) if stride else count
    y: Array = jnp.zeros(())
    for start in range(0, count, per_group):
        first = (start + 1) * stride
        weights, gate = jax.tree.map(lambda a, s=start: a[s : s + per_group], memories)
        part = _scan_memories(add, (weights, gate[:, first:]), x[:, first:], at_once)
        y = y + jnp.pad(part, ((0, 0), (first, 0)))
    return y


def _scan_memories(add: Callable, memories: Any, x: Array, at_once: int) -> Array:
    """Outputs [out, tokens]: a scan over memories or blocks of them."""
    if at_once:
        count = memories[1].shape[0]
        blocks = -(-count // at_once)
        size = -(-count // blocks)

        def block(a: Array) -> Array:
            a = jnp.pad(a, [(0, blocks * size - count)] + [(0, 0)] * (a.ndim - 1))
            return a.reshape(blocks, size, *a.shape[1:])

        memories = jax.tree.map(block, memories)

    # Rematerialised: the reads of all memories at once would be the largest array of all.
    @jax.checkpoint
    def step(y: Array, memory: Any) -> tuple[Array, None]:
        return add(y, memory, x), None

    first = jax.tree.map(lambda a: a[0], memories)
    start = jnp.zeros(jax.eval_shape(lambda m: add(0.0, m, x), first).shape, memories[1].dtype)
    if memories[1].shape[0] == 1:
        return step(start, first)[0]
    return lax.scan(step, start, memories)[0]
