"""Top-k reads of a block of tokens: each memory is read by the tokens that selected it.

These are gathered into a few columns by a product with a matrix of zeros and ones, and what they
read is scattered back by its transpose: matrix units do in VMEM what sorting tokens by memory and a
grouped product would do by way of HBM.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mc_jax.kernels.deep_read.config import Call, Config
from mc_jax.kernels.reading import of_stack, seen_by
from mc_jax.kernels.tiles import LANES, contract, each_group
from mc_jax.typing import Array

F32 = jnp.float32


def store_ranks(most: Array, gates: Any, ranks: Any, counts: Any) -> None:
    """Number the tokens that selected a memory.

    Args:
      most: how many memories the block sees.
      gates: ref [memories, tokens]; a gate of 0 is not read.
      ranks: ref of each token's number [memories, tokens], from 0; -1 where it reads nothing.
      counts: ref of their numbers [memories], of those that the block sees.
    """
    square = (LANES, LANES)
    before = lax.broadcasted_iota(jnp.int32, square, 0) < lax.broadcasted_iota(jnp.int32, square, 1)
    before = jnp.where(before, 1.0, 0.0).astype(jnp.bfloat16)
    total = jnp.zeros((gates.shape[0], 1), F32)
    for start in range(0, gates.shape[1], LANES):
        tokens = pl.ds(start, LANES)
        selected = gates[:, tokens] > 0
        ones = jnp.where(selected, 1.0, 0.0)
        rank = total + contract(ones.astype(jnp.bfloat16), before, (1, 0))
        ranks[:, tokens] = jnp.where(selected, rank, -1)
        total += jnp.sum(ones, 1, keepdims=True)

    @pl.loop(0, most)
    def _(memory: Array) -> None:
        counts[memory] = jnp.max(ranks[pl.ds(memory, 1), :]).astype(jnp.int32) + 1


def each_selected(
    call: Call,
    config: Config,
    first: Array,
    block: Array,
    stack: tuple[Array, int],
    ranked: tuple[Any, Any],
    slots: int,
    read: Callable[[Array, Array, pl.Slice], None],
    read_columns: Callable[[Array, Array, Array], None],
) -> None:
    """Cover the reads of a block of tokens by columns, or by all of it where those are not fewer.

    Args:
      call: the call.
      config: its blocks.
      first: segment of the first token.
      block: index of the block.
      stack: index of the stack of memories and their number.
      ranked: ranks and counts.
      slots: columns of one product; what needs more takes twice as many at a time.
      read: is given the memory's place in the stack, its index, and tokens of the block.
      read_columns: is given place and index, and the tokens of each column [columns, tokens], ones
        among zeros.
    """
    ranks, counts = ranked
    start = stack[0] * stack[1]
    seen = seen_by(call, config.tokens, first, block)
    # More columns than these cost as much as the whole block.
    most_tiles = int(1 / (slots * config.column_share(call)))

    @pl.loop(0, of_stack(seen.most, *stack))
    def _(place: Array) -> None:
        memory = start + place
        tiles = lax.div(counts[memory] + slots - 1, slots)
        few = tiles <= most_tiles

        def columns(tile: Array, size: int) -> None:
            column = lax.broadcasted_iota(jnp.int32, (size * slots, 1), 0) + tile * slots
            ones = jnp.where(ranks[pl.ds(memory, 1), :] == column.astype(F32), 1.0, 0.0)
            read_columns(place, memory, ones.astype(call.dtype))

        each_group(jnp.where(few, tiles, 0), 2, columns)

        @pl.when(jnp.logical_not(few))
        def _() -> None:
            read(place, memory, pl.ds(0, config.tokens))
