"""Which reader a call's tokens have, and the gates that they read cached memories with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mc_jax.caching.blocks import block_gates, select
from mc_jax.caching.read import BlockReader, LevelReader, Reader, RunReader, SharedReader
from mc_jax.caching.ring import ring_reader
from mc_jax.caching.router import RunningKeys, RunningMean, gate_logits, gate_weights, route
from mc_jax.caching.segments import Grid, visible_slots
from mc_jax.kernels.gates import Router, Scores
from mc_jax.memory.network import accumulator
from mc_jax.typing import Array, Float


class Asked(NamedTuple):
    """What a call's tokens ask their memories with, in their places on the grid.

    Attributes:
      grid: where the tokens lie.
      q: queries.
      u: what the gate asks for.
      own: mean of the own segment's keys; None unless gates read content.
      first: router queries of the tokens that select for a block; None if each token selects.
    """

    grid: Grid
    q: Float[Array, "head_dim tokens"]
    u: Array | None
    own: RunningMean | RunningKeys | None
    first: Float[Array, "head_dim blocks"] | None


def reader(
    asked: Asked, weights: Any, descriptors: Array | None, kernel: str | None
) -> Reader | None:
    """The cached memories with their gates; None if there are none to read.

    Args:
      asked: the tokens.
      weights: cached memories: one stack, leaves [memories, ...], or for each level leaves
        [segments, ...]; None if there is nothing to read.
      descriptors: of them, [memories, head_dim] or one such a segment; None unless gates read
        content.
      kernel: implementation of the reads; None for the best.
    """
    if weights is None:
        return None
    grid = asked.grid
    if grid.options.segmentation == "logarithmic":
        return _levels(asked, weights, descriptors, kernel)
    if grid.context is not None and grid.context.exchange == "ring":
        return _ring(asked, weights, descriptors, kernel)
    if asked.first is not None:
        return _blocks(asked, weights, descriptors, kernel)
    return _shared(asked, weights, descriptors, kernel)


def _levels(
    asked: Asked, weights: Any, descriptors: Array | None, kernel: str | None
) -> LevelReader:
    grid, q, u, own, _ = asked
    options, dtype = grid.options, accumulator(q.dtype)
    visible, distance = visible_slots(options, grid.token_segment, len(weights))
    if not options.gated:
        own_gates = jnp.ones(q.shape[1], dtype)
        return LevelReader(weights, own_gates, visible.astype(dtype), kernel)
    scores = gate_logits(options, u, q, own, descriptors, distance)
    return LevelReader(weights, *gate_weights(options, *scores, visible), kernel)


def _ring(asked: Asked, weights: Any, descriptors: Array | None, kernel: str | None) -> Reader:
    grid, q, u, own, first = asked
    scores, online = None, None
    if grid.options.routed:
        scores, online = route(grid.options, u, q, own)
    elif grid.options.gated:
        assert u is not None
        scores, online = u, u[0].astype(accumulator(u.dtype))
    return ring_reader(grid, scores, online, first, weights, descriptors, kernel)


def _blocks(
    asked: Asked, weights: Any, descriptors: Array | None, kernel: str | None
) -> BlockReader:
    grid, q, u, own, first = asked
    assert descriptors is not None
    segment = grid.token_segment[:: grid.options.route_every]
    visible, _ = visible_slots(grid.options, segment, descriptors.shape[0])
    memory = select(grid.options, first, descriptors, visible)
    gates = block_gates(*route(grid.options, u, q, own), descriptors, memory)
    return BlockReader(weights, memory, *gates, kernel)


def _shared(asked: Asked, weights: Any, descriptors: Array | None, kernel: str | None) -> Reader:
    grid, q, u, own, _ = asked
    options = grid.options
    router: Router | Scores | None = None
    if options.routed:
        router = Router(*route(options, u, q, own), descriptors)
    elif options.gated:
        memories = jax.tree.leaves(weights)[0].shape[0]
        _, distance = visible_slots(options, grid.token_segment, memories)
        router = Scores(*gate_logits(options, u, q, own, None, distance))
    readers: list[Reader] = [
        SharedReader(weights, router, grid.block_len, first, options.selected, kernel)
        for router, first in zip(_by_run(grid, router), grid.firsts, strict=True)
    ]
    return readers[0] if grid.runs == 1 else RunReader(readers)


def _by_run(grid: Grid, router: Router | Scores | None) -> Sequence[Router | Scores | None]:
    """What the tokens of each run score memories with."""
    match router:
        case None:
            return [None] * grid.runs
        case Router(u, online, descriptors):
            parts = zip(grid.by_run(u), grid.by_run(online), strict=True)
            return [Router(*part, descriptors) for part in parts]
        case Scores(online, cached):
            parts = zip(grid.by_run(online), grid.by_run(cached), strict=True)
            return [Scores(*part) for part in parts]
