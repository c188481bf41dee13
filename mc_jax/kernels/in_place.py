"""Loops over tiles of tokens, for functions that are mapped by `jax.vmap`.

`lax.scan` has its steps on the first axis, before those that `vmap` adds, and so transposes
what it takes and gives. Here steps come after them, and nothing is moved.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.kernels.chips import on_cpu
from mc_jax.typing import Array

# Tokens of a tile on a CPU, where it then stays in the cache; elsewhere one tile has all.
TILE = 256


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
    tokens = columns[0].shape[1]
    size = min(tokens, TILE) if on_cpu() else tokens
    if size == tokens:
        return step(carry, *columns)
    filled = [jnp.pad(x, ((0, 0), (0, -tokens % size))) for x in columns]

    def tiles(index: Any) -> list[Array]:
        return [lax.dynamic_slice_in_dim(x, index * size, size, 1) for x in filled]

    def body(index: Any, state: tuple[Any, list[Array]]) -> tuple[Any, list[Array]]:
        carry, results = state
        carry, made = step(carry, *tiles(index))
        return carry, [
            lax.dynamic_update_slice_in_dim(x, tile, index * size, 1)
            for x, tile in zip(results, made, strict=True)
        ]

    like = jax.eval_shape(lambda: step(carry, *tiles(0))[1])
    results = [jnp.zeros((x.shape[0], filled[0].shape[1]), x.dtype) for x in like]
    carry, results = lax.fori_loop(0, filled[0].shape[1] // size, body, (carry, results))
    return carry, [x[:, :tokens] for x in results]
