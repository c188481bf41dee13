"""Memory caching in chunk-parallel form, for one head of one sequence.

The call's tokens are laid out on the grid of segments and chunks; every segment is compressed by a
scan over its chunks; then all tokens read the online memory and the cached ones at once. Where a
kernel has compressed the tokens of all heads, only the second half is done here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mc_jax.caching import buckets, placement, storage
from mc_jax.caching.blocks import last_leader, leaders
from mc_jax.caching.cache import Cache, Memory, fits, memory_of
from mc_jax.caching.carry import arriving_state
from mc_jax.caching.context import Context
from mc_jax.caching.kernels import read_kernel
from mc_jax.caching.options import Options
from mc_jax.caching.read import mixes_maps, read_and_mix, read_mixed_maps
from mc_jax.caching.readers import Asked, reader
from mc_jax.caching.router import RunningKeys, RunningMean, router_queries
from mc_jax.caching.running_sums import running_sums
from mc_jax.caching.segments import Grid
from mc_jax.caching.write import write_segments
from mc_jax.kernels.chunk_read import chunk_read, unsupported
from mc_jax.kernels.triton import runs_triton
from mc_jax.kernels.writing import Written
from mc_jax.memory.chunk import Chunk, Coefficients, online_linear
from mc_jax.memory.network import DeepParams, Linear, accumulator
from mc_jax.memory.rule import Rule, State, norm_of
from mc_jax.typing import Array


class Keys(NamedTuple):
    """What gates read of a call's keys; where values are pooled, of those in their place.

    Attributes:
      own: causal mean of the own segment's keys.
      sums: sum of each segment's keys so far [segments, head_dim].
      means: mean key of each segment, if it is complete [segments, head_dim].
    """

    own: RunningMean | RunningKeys
    sums: Array
    means: Array


class Stored(NamedTuple):
    """Cached memories, before and with this call.

    Attributes:
      weights: as this call's tokens read them: one stack, leaves [memories, ...], or for each
        level leaves [segments, ...]; None if there is nothing to read.
      descriptors: their descriptors, [memories, head_dim] or one such a segment.
      memories: as the cache keeps them.
      kept_descriptors: their descriptors.
    """

    weights: Any
    descriptors: Array | None
    memories: Memory | None
    kept_descriptors: Array | None


class Compressed(NamedTuple):
    """What compressing a call's tokens gave.

    Attributes:
      ends: state at the end of each segment [segments, ...], and the same of the buckets of level
        1, 2, ... where those are compressed from their tokens.
      finals: states with which the sequence goes on, in the same order.
      online: the online memory for all places of the grid: its linear maps where memories are
        mixed inside them (`mixes_maps`), else its features [head_dim, tokens].
    """

    ends: list[State]
    finals: list[State]
    online: Any


def chunked(
    rule: Rule,
    options: Options,
    params: DeepParams | None,
    q: Array,
    k: Array,
    v: Array,
    u: Array | None,
    gates: Any,
    cache: Cache,
    count: Array | None,
    fresh: bool,
    kernel: str | None,
    on_kernel: Written | None,
    context: Context | None,
) -> tuple[Array, Cache | None]:
    """Outputs [head_dim, length] and the cache after the call; no cache with a context.

    Args:
      rule: update rule.
      options: static options.
      params: learned parts of the rule.
      q: queries [head_dim, length]; k and v alike.
      k: keys.
      v: values.
      u: what the gate asks for.
      gates: the rule's gates, leaves [..., length].
      cache: what came before; an empty one with room for this call's memories if `fresh`.
      count: how many of the tokens are there, where the rest is padding; None for all.
      fresh: whether the sequence starts here, and all of its tokens are there.
      kernel: implementation of the reads; None for the best.
      on_kernel: this head's part of what a kernel has written; None to compress here.
      context: the devices that a fresh sequence is split over; None if it is not.
    """
    grid = Grid(options, q.shape[1], 0 if fresh else cache.position, count, context)
    with jax.named_scope("compress"):
        if context is not None and not options.resets:
            cache = cache._replace(state=arriving_state(rule, grid, params, k, v, gates, cache))
        if on_kernel is None:
            compressed = _compress(rule, grid, params, q, k, v, gates, cache, kernel)
        else:
            online: Any = grid.place(on_kernel.features.T)
            if mixes_maps(options, rule.network):
                # A matrix has one map, and these are what it makes of the queries.
                features, online = online, lambda name, x: features
            compressed = Compressed([on_kernel.ends], [on_kernel.final], online)
    with jax.named_scope("store"):
        pooled = options.pooled_of(k, v)
        keys = _summarise(grid, pooled, cache, kernel) if options.routed else None
        stored = _store(rule, grid, compressed.ends, keys, cache, q.dtype)
    q = grid.place(q)
    with jax.named_scope("gate"):
        if u is not None and u.ndim:
            u = grid.place(u)
        first, last = None, None
        if cache.leader is not None:
            router = router_queries(options, u, q, accumulator(q.dtype))
            first = leaders(grid, router, cache.leader)
            last = last_leader(grid, first, cache.leader)
        asked = Asked(grid, q, u, None if keys is None else keys.own, first)
        kernel = read_kernel(options, rule, kernel, context)
        cached = reader(asked, stored.weights, stored.descriptors, kernel)
    with jax.named_scope("read"):
        read = read_mixed_maps if mixes_maps(options, rule.network) else read_and_mix
        y = read(rule.network, norm_of(params), q, compressed.online, cached)
    y = grid.take(y).astype(v.dtype)
    if context is not None:
        return y, None
    position = cache.position + (grid.length if count is None else count)
    if not fresh:
        y = jnp.where(fits(options, cache, position), y, jnp.nan)
    state, *streams = compressed.finals
    return y, Cache(
        position=position.astype(jnp.int32),
        state=state,
        key_sum=None if keys is None else _or_zero(keys.sums)[grid.ended],
        memories=stored.memories,
        descriptors=stored.kept_descriptors,
        streams=jax.tree.map(lambda *x: jnp.stack(x), *streams) if streams else cache.streams,
        leader=last,
    )


def _compress(
    rule: Rule,
    grid: Grid,
    params: DeepParams | None,
    q: Array,
    k: Array,
    v: Array,
    gates: Any,
    cache: Cache,
    kernel: str | None,
) -> Compressed:
    """Compress the call's tokens in XLA; arguments as `chunked`."""
    written, coefficients, streams = write_segments(rule, grid, params, k, v, gates, cache)
    online: Any = _online(grid, written.chunks, coefficients, q.dtype, kernel)
    if not mixes_maps(grid.options, rule.network):
        online = rule.network.features(online, grid.place(q))
    runs = (written, *streams)
    return Compressed([run.ends for run in runs], [run.final for run in runs], online)


def _or_zero(rows: Array) -> Array:
    """Rows with one more, of zeros, for the segment that the next call starts."""
    return jnp.concatenate([rows, jnp.zeros_like(rows[:1])])


def _summarise(grid: Grid, k: Array, cache: Cache, kernel: str | None) -> Keys:
    """Running sums and means of the keys, segment by segment (eqs. 10 and 16)."""
    assert cache.key_sum is not None
    dtype = cache.key_sum.dtype
    keys = grid.place(k)
    if grid.count is not None:
        keys = jnp.where(grid.valid, keys, 0)
    by_segment = grid.by_segment(keys)
    counts = jnp.tile(jnp.arange(1, grid.block_len + 1, dtype=dtype), grid.segments)
    own: RunningMean | RunningKeys
    if grid.fresh and runs_triton(kernel, unsupported(grid.block_len, k.shape[0], k.dtype)):
        totals = jnp.sum(by_segment, -1, dtype=dtype).T
        own = RunningKeys(keys, counts, grid.block_len)
    else:
        sums = running_sums(by_segment, dtype)
        if not grid.fresh:
            sums = sums.at[:, 0].add(cache.key_sum[:, None])
        totals = sums[:, :, -1].T
        own = RunningMean(sums.reshape(k.shape[0], -1), counts)
    return Keys(own, totals, totals / grid.block_len)


def _online(
    grid: Grid, chunks: Chunk, coefficients: Coefficients, dtype: jnp.dtype, kernel: str | None
) -> Linear:
    """The online memory's linear maps for inputs [in, tokens]."""
    width = jax.tree.leaves(chunks.weights)[0].shape[-1]
    logs = coefficients.log_weights
    reason = unsupported(grid.options.chunk_len, width, dtype)
    if logs is not None and runs_triton(kernel, reason):
        return lambda name, x: _online_rows(chunks, logs, name, x)

    def linear(name: str, x: Array) -> Array:
        def one(chunk: Chunk, coefficients: Coefficients, x: Array) -> Array:
            return online_linear(chunk, coefficients, dtype)(name, x)

        segment = jax.vmap(one, in_axes=(0, 0, 1), out_axes=1)
        call = jax.vmap(segment, in_axes=(0, 0, 1), out_axes=1)
        return call(chunks, coefficients, grid.by_chunk(x)).reshape(-1, grid.tokens)

    return linear


def _online_rows(chunks: Chunk, logs: Array, name: str, x: Array) -> Array:
    """The same on the kernel of a GPU, of matrices that are written at every token's own place."""

    def rows(x: Array) -> Array:
        return x.swapaxes(-1, -2).reshape(-1, x.shape[-2])

    keys, values = chunks.factors.inputs[name], -chunks.factors.delta[name]
    states = getattr(chunks.weights, name)
    states = states.reshape(-1, *states.shape[2:])
    return chunk_read(x.T, rows(keys), rows(values), logs.reshape(-1), states).T


def _store(
    rule: Rule,
    grid: Grid,
    ends: list[State],
    keys: Keys | None,
    cache: Cache,
    dtype: jnp.dtype,
) -> Stored:
    """Add the call's memories, states at the ends of segments and of buckets, to the cached.

    Those of other devices travel in `dtype`, the type that they are read in.
    """
    if not grid.options.caches:
        return Stored(None, None, None, None)
    memories = [memory_of(rule, grid.options, state) for state in ends]
    means = None if keys is None else keys.means
    if grid.context is not None and grid.context.exchange == "gather":
        memories, means = _gather(grid.context, memories, means, dtype)
    if grid.options.segmentation == "logarithmic":
        return _store_buckets(rule, grid, memories, means, cache)
    return _store_stack(grid, memories[0], means, cache)


def _gather(
    context: Context, memories: list[Memory], means: Array | None, dtype: jnp.dtype
) -> tuple[list[Memory], Array | None]:
    """Memories and descriptors of all devices."""
    travelling = [
        memory._replace(weights=jax.tree.map(lambda w: w.astype(dtype), memory.weights))
        for memory in memories
    ]
    return context.gather((travelling, means))


def _store_stack(grid: Grid, ends: Memory, means: Array | None, cache: Cache) -> Stored:
    """Constant segments: one stack, a slot a segment."""
    assert cache.memories is not None
    room = cache.capacity
    if grid.fresh:
        memories, descriptors = jax.tree.map(lambda new: new[:room], (ends, means))
        # Nobody reads the memory of the call's last segment yet.
        readable = min(room, grid.all_segments - 1)
    else:
        slots = jnp.where(grid.segment_complete, grid.first + jnp.arange(grid.segments), room)
        kept = cache.memories.weights
        kept = placement.put(kept, slots, storage.as_stored(kept, ends.weights))
        memories = cache.memories._replace(weights=kept)
        descriptors = placement.put(cache.descriptors, slots, means)
        readable = room
    if grid.context is not None and grid.context.exchange == "ring":
        return Stored(ends.weights, means, None, None)
    if not readable:
        return Stored(None, None, memories, descriptors)
    weights, seen = jax.tree.map(lambda x: x[:readable], (memories.weights, descriptors))
    weights = storage.as_floats(placement.fetch(weights), _dtype_of(ends))
    return Stored(weights, seen, memories, descriptors)


def _store_buckets(
    rule: Rule, grid: Grid, ends: list[Memory], means: Array | None, cache: Cache
) -> Stored:
    """Logarithmic segments: a slot a level; each segment reads the buckets of its own prefix."""
    levels = cache.capacity
    if not levels:
        return Stored(None, cache.descriptors, cache.memories, cache.descriptors)
    assert cache.memories is not None
    held = storage.as_floats(cache.memories.weights, _dtype_of(ends[0]))

    # The first segment of what has been stored; of a sequence that is split, of all devices.
    first = grid.first if grid.context is None else 0

    def rows(tables: list, segment: Array) -> list:
        return [
            buckets.rows_for(table, segment, first, level) for level, table in enumerate(tables)
        ]

    def kept(tables: list) -> Any:
        last = rows(tables, jnp.asarray(grid.first + grid.ended))
        return jax.tree.map(lambda *x: jnp.stack(x), *last)

    combine = buckets.combine_for(rule, grid.options)
    tables = buckets.tables(cache.memories._replace(weights=held), ends, levels, combine)
    weights = [memory.weights for memory in rows(tables, grid.index)]
    after = kept(tables)
    stored = storage.as_stored(cache.memories.weights, after.weights)
    memories = after._replace(weights=stored)
    if means is None:
        return Stored(weights, None, memories, None)
    described = buckets.tables(cache.descriptors, [means], levels, buckets.mean)
    seen = jnp.stack(rows(described, grid.index), 1)
    return Stored(weights, seen, memories, kept(described))


def _dtype_of(memory: Memory) -> jnp.dtype:
    return jax.tree.leaves(memory.weights)[0].dtype
