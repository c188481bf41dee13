"""The read of chosen memories in XLA: a step takes a tile of tokens, for a CPU's cache.

What a block reads is gathered step by step: all at once would be an array of a memory a block,
which for large memories or small blocks is larger than everything else.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mc_jax.device import on_cpu
from mc_jax.kernels.causal_tiles import Pull, Read, pull_through
from mc_jax.kernels.in_place import TILE, map_in_place, scan_in_place
from mc_jax.memory.network import accumulator
from mc_jax.typing import Array, Float, Int

# Most numbers of a head that a step gathers where a tile need not stay in a cache.
MOST_GATHERED = 2**22


def xla(
    read: Read,
    x: Float[Array, "in tokens"],
    weights: Any,
    memory: Int[Array, "reads blocks"],
    gate: Float[Array, "reads tokens"],
    pull: Pull | None = None,
) -> Float[Array, "out tokens"]:
    """See `block_read`.

    Args:
      read: see `Read`.
      x: inputs.
      weights: leaves [memories, ...].
      memory: those that each block has chosen.
      gate: their weights.
      pull: see `Pull`; None derives it from `read`.
    """
    return _read((read, pull or pull_through(read)), weights, gate, x, memory)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read(
    static: tuple[Read, Pull], weights: Any, gate: Array, x: Array, memory: Array
) -> Float[Array, "out tokens"]:
    read, _ = static
    narrow = jax.tree.map(lambda w: w.astype(x.dtype), weights)

    def step(inputs: tuple[Array, Array, Array]) -> Array:
        memory, gate, x = inputs
        reads = (
            g[:, None] * jax.vmap(read)(_take(narrow, at), x)
            for at, g in zip(memory, gate, strict=True)
        )
        return sum(reads)

    return _join(map_in_place(step, _tiles(weights, memory, gate, x)), x.shape[1])


def _forward(
    static: tuple[Read, Pull], weights: Any, gate: Array, x: Array, memory: Array
) -> tuple[Array, tuple]:
    return _read(static, weights, gate, x, memory), (weights, gate, x, memory)


def _backward(static: tuple[Read, Pull], saved: tuple, cotangent: Array) -> tuple:
    _, pull = static
    weights, gate, x, memory = saved
    narrow = jax.tree.map(lambda w: w.astype(x.dtype), weights)

    def step(of_weights: Any, inputs: tuple[Array, ...]) -> tuple[Any, tuple[Array, Array]]:
        memory, gate, x, of_y = inputs
        of_gates, of_x = [], jnp.zeros_like(x, accumulator(x.dtype))
        for at, g in zip(memory, gate, strict=True):
            of_chosen, of_gate, more = jax.vmap(pull)(_take(narrow, at), g, x, of_y)
            of_weights = jax.tree.map(
                lambda total, a, at=at: total.at[at].add(a.astype(total.dtype), mode="drop"),
                of_weights,
                of_chosen,
            )
            of_gates.append(of_gate)
            of_x += more
        return of_weights, (jnp.stack(of_gates, 1), of_x.astype(x.dtype))

    sums = jax.tree.map(lambda w: jnp.zeros(w.shape, accumulator(w.dtype)), weights)
    tiles = _tiles(weights, memory, gate, x, cotangent)
    sums, (of_gate, of_x) = scan_in_place(step, sums, tiles)
    of_weights = jax.tree.map(lambda total, w: total.astype(w.dtype), sums, weights)
    tokens = x.shape[1]
    return of_weights, _join(of_gate, tokens).astype(gate.dtype), _join(of_x, tokens), None


_read.defvjp(_forward, _backward)


def _tiles(weights: Any, memory: Array, gate: Array, *columns: Array) -> tuple[Array, ...]:
    """By step: memories and gates [steps, reads, blocks, ...], all else [steps, blocks, ...]."""
    blocks = memory.shape[1]
    size = gate.shape[1] // blocks
    one = sum(w[0].size for w in jax.tree.leaves(weights))
    most = TILE // size if on_cpu() else MOST_GATHERED // one
    at_once = max(1, min(blocks, most))
    missing = -blocks % at_once
    memory = jnp.pad(memory, ((0, 0), (0, missing)), constant_values=jnp.iinfo(memory.dtype).max)

    def cut(x: Array) -> Array:
        """[rows, tokens] as [steps, rows, blocks, size]."""
        x = jnp.pad(x, ((0, 0), (0, missing * size)))
        return x.reshape(x.shape[0], -1, at_once, size).swapaxes(0, 1)

    by_step = memory.reshape(memory.shape[0], -1, at_once).swapaxes(0, 1)
    return by_step, cut(gate), *(cut(x).swapaxes(1, 2) for x in columns)


def _join(
    tiles: Float[Array, "steps blocks rows size"], tokens: int
) -> Float[Array, "rows tokens"]:
    rows = tiles.shape[2]
    return jnp.moveaxis(tiles, 2, 0).reshape(rows, -1)[:, :tokens]


def _take(weights: Any, memory: Array) -> Any:
    """Memories by their index, zeros for one that is out of range."""

    def one(w: Array) -> Array:
        return jnp.take(w, memory, axis=0, mode="fill", fill_value=0)

    return jax.tree.map(one, weights)
