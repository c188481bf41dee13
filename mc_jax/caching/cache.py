"""What decoding needs: the running state, the cached memories and their descriptors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mc_jax.caching.options import Options
from mc_jax.caching.placement import pad
from mc_jax.caching.segments import capacity_for
from mc_jax.memory.network import DeepParams, Weights
from mc_jax.memory.rule import Rule, State
from mc_jax.typing import Array, Float, Int


class Memory(NamedTuple):
    """What is cached of a segment.

    Attributes:
      weights: the memory's weights at the segment's end.
      log_decay: log of the retention over the segment, kept where memories are merged.
    """

    weights: Weights
    log_decay: Float[Array, "*batch"] | None = None


class Cache(NamedTuple):
    """Everything of a sequence's past that its future depends on. Arrays only.

    Shapes are for one head of one sequence; what `mc_jax.memory_caching` returns has leading axes
    [batch, heads] on all but `position`.

    Attributes:
      position: tokens read so far, int32 []; [batch] where sequences have different lengths.
      state: the running recurrence, ready for the next token.
      key_sum: sum of the running segment's keys, or of what else is pooled [head_dim]; None unless
        gates read content.
      memories: cached memories, slots on the first axis; slots not yet filled hold zeros.
      descriptors: their mean keys, or of what else is pooled [slots, head_dim]; None unless gates
        read content.
      streams: for logarithmic segments of independent MLP memories, the recurrences that compress
        the buckets of level 1, 2, ..., capacity.
      leader: router queries of the first token of the last token's block [head_dim]; None unless
        blocks of tokens select memories together.
    """

    position: Int[Array, ""]
    state: State
    key_sum: Float[Array, " head_dim"] | None
    memories: Memory | None
    descriptors: Float[Array, "slots head_dim"] | None
    streams: State | None
    leader: Float[Array, " head_dim"] | None = None

    @property
    def capacity(self) -> int:
        """Memory slots, filled or not; 0 without caching."""
        if self.memories is None:
            return 0
        # Weights are matrices, so the slots' axis is third from the end.
        return jax.tree.leaves(self.memories.weights)[0].shape[-3]


def uses_streams(rule: Rule, options: Options) -> bool:
    """Whether a bucket has to be compressed from its tokens, since memories do not add up."""
    return options.resets and options.segmentation == "logarithmic" and not rule.merges


def memory_of(rule: Rule, options: Options, state: State) -> Memory:
    """The part of a segment's last state that is cached."""
    merged = options.resets and options.segmentation == "logarithmic" and rule.merges
    return Memory(state.weights, state.log_decay if merged else None)


def empty_cache(
    rule: Rule,
    options: Options,
    params: DeepParams | None,
    head_dim: int,
    window: int,
    dtype: jnp.dtype,
    capacity: int,
) -> Cache:
    """Cache of one head before the first token, with room for `capacity` memories."""
    state = rule.initial_state(params, head_dim, window, dtype)

    def slots(x: Array) -> Array:
        return jnp.zeros((capacity, *x.shape), x.dtype)

    memories = jax.tree.map(slots, memory_of(rule, options, state)) if options.caches else None
    key = jnp.zeros((head_dim,), dtype)
    streams = None
    if uses_streams(rule, options):
        streams = jax.tree.map(lambda x: jnp.broadcast_to(x, (capacity, *x.shape)), state)
    return Cache(
        jnp.zeros((), jnp.int32),
        state,
        key if options.routed else None,
        memories,
        slots(key) if options.routed else None,
        streams,
        key if options.routes_blocks else None,
    )


def grow(cache: Cache, capacity: int) -> Cache:
    """Cache with room for `capacity` memories, leading axes [batch, heads]; never smaller."""
    missing = capacity - cache.capacity
    if cache.memories is None or missing <= 0:
        return cache

    streams = cache.streams
    if streams is not None:
        # Above the highest level no bucket has ended yet: its stream, and without any level the
        # running state, has compressed everything since the start, as every higher level has.
        top = jax.tree.map(lambda x: x[:, :, None], cache.state)
        if cache.capacity:
            top = jax.tree.map(lambda x: x[:, :, -1:], streams)
        streams = jax.tree.map(
            lambda x, t: jnp.concatenate([x, jnp.repeat(t, missing, axis=2)], 2), streams, top
        )
    return cache._replace(
        memories=pad(cache.memories, 2, missing),
        descriptors=pad(cache.descriptors, 2, missing),
        streams=streams,
    )


def fits(options: Options, cache: Cache, position: Array) -> Array:
    """Whether the cache has room for the memories of a sequence of `position` tokens."""
    if cache.memories is None:
        return jnp.array(True)
    completed = position // options.segment_len
    if options.segmentation == "logarithmic":
        return completed < 2**cache.capacity
    return completed <= cache.capacity


def reserve(
    cache: Cache, length: int, *, segment_len: int, segmentation: str = "constant"
) -> Cache:
    """Make room for a sequence of `length` tokens in all.

    Outside `jit` a cache grows by itself. Inside, shapes are fixed: reserve room before, or the
    outputs past the room are NaN.

    Args:
      cache: a cache that `mc_jax.memory_caching` returned.
      length: tokens of the whole sequence, those already read included.
      segment_len: as in the call that made the cache.
      segmentation: as in the call that made the cache.

    Returns:
      The same cache with free slots.
    """
    return grow(cache, capacity_for(length, segment_len, segmentation))
