"""Which memories a block of tokens reads, and in what order."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mc_jax.kernels.deep_read.config import Call, Config
from mc_jax.kernels.reading import of_stack, seen_by
from mc_jax.kernels.tiles import each_group
from mc_jax.typing import Array


def each_read(
    call: Call,
    config: Config,
    first: Array,
    block: Array,
    stack: tuple[Array, int],
    group: int,
    read: Callable[[Array, Array, pl.Slice], None],
) -> None:
    """Call `read(place, memory, tokens)` for every read of a block of tokens.

    Args:
      call: the call.
      config: its blocks.
      first: segment of the first token.
      block: index of the block.
      stack: index of the stack of memories and their number.
      group: memories that are read side by side.
      read: is given the memory's place in the stack, its index, and the tokens of the block.
    """
    seen = seen_by(call, config.tokens, first, block)
    start = stack[0] * stack[1]
    by_all, by_some = (of_stack(count, *stack) for count in (seen.least, seen.most))

    def by_whole_block(place: Array, size: int) -> None:
        for i in range(size):
            read(place + i, start + place + i, pl.ds(0, config.tokens))

    each_group(by_all, group, by_whole_block)

    @pl.loop(by_all, by_some)
    def _(place: Array) -> None:
        sees = (start + place + 1 - first) * call.segment_len - block * config.tokens

        @pl.loop(lax.div(jnp.maximum(sees, 0), config.part), config.tokens // config.part)
        def _(part: Array) -> None:
            at = pl.multiple_of(part * config.part, config.part)
            read(place, start + place, pl.ds(at, config.part))
