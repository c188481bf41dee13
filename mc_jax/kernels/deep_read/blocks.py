"""Which memories a block of tokens reads, and in what order."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mc_jax.kernels.deep_read.config import Call, Config
from mc_jax.typing import Array


class Seen(NamedTuple):
    """How many memories, from the first on, the tokens of a block see.

    Attributes:
      each: by token [1, tokens].
      least: by the first token.
      most: by the last one.
    """

    each: Array
    least: Array
    most: Array


def seen_by(call: Call, config: Config, first: Array, block: Array) -> Seen:
    """What the tokens of a block see; padding sees what the last token does.

    Args:
      call: the call.
      config: its blocks.
      first: segment of the first token.
      block: index of the block.
    """
    start, end = block * config.tokens, call.length - 1
    each = start + lax.broadcasted_iota(jnp.int32, (1, config.tokens), 1)

    def seen(token: Array) -> Array:
        segment = first + lax.div(jnp.minimum(token, end), call.segment_len)
        return jnp.minimum(segment, call.memories)

    return Seen(*map(seen, (each, start, start + config.tokens - 1)))


def each_group(count: Array, group: int, visit: Callable[[list[Array]], None]) -> None:
    """Cover 0..count-1 by runs of a group and the rest one by one: `visit(run)`."""
    runs = lax.div(count, group)

    @pl.loop(0, runs)
    def _(i: Array) -> None:
        visit([i * group + offset for offset in range(group)])

    if group > 1:

        @pl.loop(runs * group, count)
        def _(i: Array) -> None:
            visit([i])


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
    seen = seen_by(call, config, first, block)
    start = stack[0] * stack[1]
    by_all, by_some = (jnp.clip(count - start, 0, stack[1]) for count in (seen.least, seen.most))

    def by_whole_block(places: list[Array]) -> None:
        for place in places:
            read(place, start + place, pl.ds(0, config.tokens))

    each_group(by_all, group, by_whole_block)

    @pl.loop(by_all, by_some)
    def _(place: Array) -> None:
        sees = (start + place + 1 - first) * call.segment_len - block * config.tokens

        @pl.loop(lax.div(jnp.maximum(sees, 0), config.part), config.tokens // config.part)
        def _(part: Array) -> None:
            at = pl.multiple_of(part * config.part, config.part)
            read(place, start + place, pl.ds(at, config.part))
