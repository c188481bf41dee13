"""Loops over tiles of tokens, for functions that are mapped by `jax.vmap`.

`lax.scan` has its steps on the first axis, before those that `vmap` adds, and so transposes
what it takes and gives. Here steps come after them, and nothing is moved.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.device import on_cpu
from mc_jax.typing import Array

# Tokens of a tile on a CPU, where it then stays in the cache; elsewhere one tile has all.
TILE = 256
# Most numbers of a tile, measured on two cores, that XLA leaves to one of a CPU. With more they
# share each operation, one takes from another's cache what that has just made, and together they
# need twice the time that one needs alone.
OF_ONE_CORE = 2**15


def scan_in_place(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> Any:
    """As `lax.scan(step, carry, xs)`."""

    def at(index: Any) -> Any:
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, 0, keepdims=False), xs)

    def body(index: Any, state: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, ys = state
        carry, y = step(carry, at(index))
        return carry, jax.tree.map(
            lambda all_steps, one: lax.dynamic_update_index_in_dim(all_steps, one, index, 0), ys, y
        )

    steps = jax.tree.leaves(xs)[0].shape[0]
    like = jax.eval_shape(lambda: step(carry, at(0))[1])
    ys = jax.tree.map(lambda y: jnp.zeros((steps, *y.shape), y.dtype), like)
    return lax.fori_loop(0, steps, body, (carry, ys))


def map_in_place(function: Callable[[Any], Any], xs: Any) -> Any:
    """As `lax.map(function, xs)`."""
    return scan_in_place(lambda _, x: (None, function(x)), None, xs)[1]


def scan_tiles(
    step: Callable[..., tuple[Any, list[Array]]], carry: Any, *columns: Array
) -> tuple[Any, list[Array]]:
    """A scan over tiles of tokens, which lie on the last axis of what it takes and gives.

    Args:
      step: takes the carry and a tile [rows, size] of each array, and gives the carry and tiles.
      carry: what the first step takes.
      columns: arrays [rows, tokens]; the last tile is filled up with zeros.

    Returns:
      The last carry, and the arrays [rows, tokens] that the steps' tiles make up.
    """
    return scan_runs(lambda _: step, 1, carry, *columns)


def scan_runs(
    step_until: Callable[[int], Callable[..., tuple[Any, list[Array]]]],
    runs: int,
    carry: Any,
    *columns: Array,
) -> tuple[Any, list[Array]]:
    """As `scan_tiles`, with a step for each run of tiles.

    Args:
      step_until: makes a run's step from the number of tokens before its end.
      runs: at most so many, as long as each other.
      carry: what the first step takes.
      columns: arrays [rows, tokens].
    """
    tokens = columns[0].shape[1]
    size = min(tokens, TILE) if on_cpu() else tokens
    if size == tokens:
        return step_until(tokens)(carry, *columns)
    filled = [jnp.pad(x, ((0, 0), (0, -tokens % size))) for x in columns]
    tiles = filled[0].shape[1] // size

    def cut(index: Any) -> list[Array]:
        return [lax.dynamic_slice_in_dim(x, index * size, size, 1) for x in filled]

    def body(step: Callable, index: Any, state: tuple[Any, list[Array]]) -> tuple[Any, list[Array]]:
        carry, results = state
        carry, made = step(carry, *cut(index))
        return carry, [
            lax.dynamic_update_slice_in_dim(x, tile, index * size, 1)
            for x, tile in zip(results, made, strict=True)
        ]

    like = jax.eval_shape(lambda: step_until(tokens)(carry, *cut(0))[1])
    state = carry, [jnp.zeros((x.shape[0], tiles * size), x.dtype) for x in like]
    run = -(-tiles // runs)
    for first in range(0, tiles, run):
        after = min(first + run, tiles)
        step = step_until(min(after * size, tokens))
        state = lax.fori_loop(first, after, functools.partial(body, step), state)
    carry, results = state
    return carry, [x[:, :tokens] for x in results]
