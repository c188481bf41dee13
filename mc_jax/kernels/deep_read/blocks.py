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
      group: memories that are read side by side by the whole block; twice as many by parts of it.
      read: is given the memory's place in the stack, its index, and the tokens of the block.
    """
    seen = seen_by(call, config.tokens, first, block)
    start, parts = stack[0] * stack[1], config.tokens // config.part
    by_all = of_stack(seen.least, *stack)

    def by_whole_block(place: Array, size: int) -> None:
        for i in range(size):
            read(place + i, start + place + i, pl.ds(0, config.tokens))

    each_group(by_all, group, by_whole_block)

    def first_part(place: Array) -> Array:
        sees = (start + place + 1 - first) * call.segment_len - block * config.tokens
        return lax.div(jnp.maximum(sees, 0), config.part)

    def by_parts(size: int, at: tuple[Array, Array]) -> tuple[Array, Array]:
        """From a place and a part on, the parts of a memory before the next memory."""
        place, part = at
        for _ in range(size):
            tokens = pl.ds(pl.multiple_of(part * config.part, config.part), config.part)
            read(place, start + place, tokens)
            last = part + 1 == parts
            part = jnp.where(last, first_part(place + 1), part + 1)
            place += last
        return place, part

    seen_by_parts = (seen_by(call, config.part, first, block * parts + i) for i in range(parts))
    count = sum(of_stack(seen.most, *stack) - by_all for seen in seen_by_parts)
    at = by_all, first_part(by_all)
    size = most = 2 * group if parts > 1 else group
    while size:
        runs = lax.div(count, size)
        runs = runs if size == most else lax.rem(runs, 2)
        at = lax.fori_loop(0, runs, lambda _, at, size=size: by_parts(size, at), at)
        size //= 2
