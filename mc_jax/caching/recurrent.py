"""Memory caching token by token, for one head of one sequence: decoding, and the reference.

Everything is as the equations print it: the rule's recurrence, one memory per segment, a soup whose
parameters are mixed before it is read.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.caching import buckets
from mc_jax.caching.cache import Cache, fits, memory_of
from mc_jax.caching.options import Options
from mc_jax.caching.router import gate_logits, gate_weights
from mc_jax.caching.segments import visible_slots
from mc_jax.memory.network import DeepParams, Weights, accumulator, forward, linear_of
from mc_jax.memory.rule import Rule, State, norm_of, select
from mc_jax.typing import Array


def recurrent(
    rule: Rule,
    options: Options,
    params: DeepParams | None,
    q: Array,
    k: Array,
    v: Array,
    u: Array | None,
    gates: Any,
    cache: Cache,
) -> tuple[Array, Cache]:
    """Outputs [head_dim, length] and the cache after the call; arguments as `chunked.chunked`."""
    per_token = u is not None and u.ndim > 0
    tokens = (q[:, None], k[:, None], v[:, None], u[:, None] if per_token else None, gates)

    def step(cache: Cache, token: tuple) -> tuple[Cache, Array]:
        q, k, v, router, gates = token
        return _step(rule, options, params, q, k, v, router if per_token else u, gates, cache)

    cache, y = lax.scan(step, cache, jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), tokens))
    return jnp.moveaxis(y[..., 0], 0, -1).astype(v.dtype), cache


def _step(
    rule: Rule,
    options: Options,
    params: DeepParams | None,
    q: Array,
    k: Array,
    v: Array,
    u: Array | None,
    gates: Any,
    cache: Cache,
) -> tuple[Cache, Array]:
    position = cache.position + 1

    def write(state: State) -> State:
        return rule.step(params, state, k, v, gates)

    def settle(state: State) -> State:
        chunk_end = position % options.chunk_len == 0
        return select(chunk_end, rule.end_chunk(params, state), state)

    state = write(cache.state)
    streams = cache.streams
    if streams is not None:
        streams = jax.vmap(lambda stream: settle(write(stream)))(streams)
    key_sum = None if cache.key_sum is None else cache.key_sum + k[:, 0].astype(cache.key_sum.dtype)
    cache = cache._replace(position=position, state=state, key_sum=key_sum, streams=streams)
    y = _read(rule, options, params, q, u, cache)
    y = jnp.where(fits(options, cache, position), y, jnp.nan)
    # What a chunk's end does to the weights comes after its last token has read them.
    cache = cache._replace(state=settle(state))
    if options.caches and cache.capacity:
        # Both branches exist once: what is large is copied only where a segment ends.
        ended = position % options.segment_len == 0
        cache = lax.cond(
            ended, lambda c: _end_segment(rule, options, params, c), lambda c: c, cache
        )
    return cache, y


def _read(
    rule: Rule, options: Options, params: DeepParams | None, q: Array, u: Array | None, cache: Cache
) -> Array:
    """Eqs. 7, 9, 14 to 17 for one token."""
    dtype, norm = q.dtype, norm_of(params)

    def read(weights: Weights) -> Array:
        return forward(rule.network, linear_of(weights, dtype), norm, q)

    if not cache.capacity:
        return read(cache.state.weights)
    inside = cache.position - 1
    segment = inside // options.segment_len
    visible, distance = visible_slots(options, segment[None], cache.capacity)
    online_gate = jnp.ones((1,), accumulator(dtype))
    gate = visible.astype(accumulator(dtype))
    if options.gated:
        own = None
        if options.routed:
            assert cache.key_sum is not None
            own = cache.key_sum[:, None] / (inside % options.segment_len + 1)
        scores = gate_logits(options, u, q, own, cache.descriptors, distance)
        online_gate, gate = gate_weights(options, *scores, visible)
    assert cache.memories is not None
    memories = cache.memories.weights
    if options.aggregation == "soup":
        return read(
            jax.tree.map(
                lambda own, kept: online_gate * own + jnp.tensordot(gate[:, 0], kept, 1),
                cache.state.weights,
                memories,
            )
        )
    reads = jax.vmap(read)(memories)
    return online_gate * read(cache.state.weights) + jnp.sum(gate[:, None] * reads, 0)


def _end_segment(rule: Rule, options: Options, params: DeepParams | None, cache: Cache) -> Cache:
    """Cache the memory of the segment that just ended; start the next one."""
    completed = cache.position // options.segment_len
    room = cache.capacity
    ended = memory_of(rule, options, cache.state)
    described = None if cache.key_sum is None else cache.key_sum / options.segment_len
    streams = cache.streams
    memories, descriptors = cache.memories, cache.descriptors
    if options.segmentation == "constant":

        def store(slots: Array, new: Array) -> Array:
            return slots.at[completed - 1].set(new, mode="drop")

        memories, descriptors = jax.tree.map(store, (memories, descriptors), (ended, described))
    else:
        ends, combine = [ended], buckets.combine_for(rule, options)
        if streams is not None:
            levels = [jax.tree.map(lambda x, i=i: x[i], streams) for i in range(room)]
            ends += [memory_of(rule, options, level) for level in levels]
        memories = buckets.push(memories, ends, completed, room, combine)
        if described is not None:
            descriptors = buckets.push(descriptors, [described], completed, room, buckets.mean)
    state = cache.state
    if options.resets:
        window = 0 if state.window is None else state.window[0].shape[1]
        width = jax.tree.leaves(state.weights)[0].shape[-1]
        dtype = jax.tree.leaves(state.weights)[0].dtype
        initial = rule.initial_state(params, width, window, dtype)
        state = initial
        if streams is not None:
            streams = jax.vmap(
                lambda level, stream: select(completed % 2**level == 0, initial, stream)
            )(jnp.arange(1, room + 1), streams)
    key_sum = None if cache.key_sum is None else jnp.zeros_like(cache.key_sum)
    return Cache(cache.position, state, key_sum, memories, descriptors, streams)
