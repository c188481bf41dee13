"""Memory caching token by token, for one head of one sequence: decoding, and the reference.

The rule's recurrence is as the equations print it, one memory per segment is kept, and how a token
reads them is `token_read`'s.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.caching import buckets, placement, storage
from mc_jax.caching.cache import Cache, fits, memory_of
from mc_jax.caching.options import Options
from mc_jax.caching.token_read import Token
from mc_jax.memory.network import DeepParams
from mc_jax.memory.rule import Rule, State, select
from mc_jax.typing import Array

Read = Callable[[Token, Cache], Array]


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
    count: Array | None,
    read: Read,
) -> tuple[Array, Cache]:
    """Outputs [head_dim, length] and the cache after the call.

    Args are those of `chunked.chunked`; `read` is one of `token_read.READS`.
    """
    per_token = u is not None and u.ndim > 0
    there = None if count is None else jnp.arange(q.shape[1]) < count
    tokens = (q[:, None], k[:, None], v[:, None], u[:, None] if per_token else None, gates)
    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), tokens)

    def step(cache: Cache, inputs: tuple) -> tuple[Cache, Array]:
        (q, k, v, router, gates), there = inputs
        token = Token(rule, options, params, q, router if per_token else u)
        return _step(token, k, v, gates, cache, there, read)

    cache, y = lax.scan(step, cache, (tokens, there))
    return jnp.moveaxis(y[..., 0], 0, -1).astype(v.dtype), cache


def _step(
    token: Token,
    k: Array,
    v: Array,
    gates: Any,
    cache: Cache,
    there: Array | None,
    read: Read,
) -> tuple[Cache, Array]:
    """Write one token, read with it, end what ends with it; nothing if it is not `there`."""
    rule, options, params = token.rule, token.options, token.params
    position = cache.position + (1 if there is None else there.astype(jnp.int32))

    def if_there(happens: Array) -> Array:
        return happens if there is None else happens & there

    def write(state: State) -> State:
        written = rule.step(params, state, k, v, gates)
        return written if there is None else select(there, written, state)

    def settle(state: State) -> State:
        chunk_end = if_there(position % options.chunk_len == 0)
        return select(chunk_end, rule.end_chunk(params, state), state)

    state = write(cache.state)
    streams = cache.streams
    if streams is not None:
        streams = jax.vmap(lambda stream: settle(write(stream)))(streams)
    key_sum = cache.key_sum
    if key_sum is not None:
        pooled = options.pooled_of(k, v)[:, 0].astype(key_sum.dtype)
        key_sum = key_sum + (pooled if there is None else jnp.where(there, pooled, 0))
    leader = cache.leader
    if leader is not None:
        leads = if_there(cache.position % options.route_every == 0)
        leader = jnp.where(leads, token.router_queries[:, 0], leader)
    written = cache._replace(
        position=position, state=state, key_sum=key_sum, streams=streams, leader=leader
    )
    y = read(token, written)
    y = jnp.where(fits(options, cache, position), y, jnp.nan)
    # What a chunk's end does to the weights comes after its last token has read them.
    after = written._replace(state=settle(state))
    if options.caches and cache.capacity:
        ended = if_there(position % options.segment_len == 0)
        after = _end_segment(rule, options, params, after, ended, y)
    return after, y


def _end_segment(
    rule: Rule,
    options: Options,
    params: DeepParams | None,
    cache: Cache,
    ended: Array,
    y: Array,
) -> Cache:
    """Where a segment has `ended`, cache its memory and start the next one; `y` is the output."""
    completed = cache.position // options.segment_len
    room = cache.capacity
    assert cache.memories is not None
    memory = memory_of(rule, options, cache.state)
    described = None
    if cache.key_sum is not None:
        described = cache.key_sum / options.segment_len
    streams = cache.streams
    memories, descriptors = cache.memories, cache.descriptors
    if options.segmentation == "constant":
        # Out of the room where nothing ends.
        slot = _after(y, jnp.where(ended, completed - 1, room))
        weights = storage.as_stored(memories.weights, memory.weights)
        memories = memories._replace(weights=placement.put(memories.weights, slot, weights))
        descriptors = placement.put(descriptors, slot, described)
    else:
        ends, combine = [memory], buckets.combine_for(rule, options)
        if streams is not None:
            levels = [jax.tree.map(lambda x, i=i: x[i], streams) for i in range(room)]
            ends += [memory_of(rule, options, level) for level in levels]
        dtype = jax.tree.leaves(memory.weights)[0].dtype
        held = memories._replace(weights=storage.as_floats(memories.weights, dtype))
        after = buckets.push(held, ends, completed, room, combine)
        weights = storage.as_stored(memories.weights, after.weights)
        memories = select(ended, after._replace(weights=weights), memories)
        if described is not None:
            means = buckets.push(descriptors, [described], completed, room, buckets.mean)
            descriptors = select(ended, means, descriptors)
    state = cache.state
    if options.resets:
        window = 0 if state.window is None else state.window[0].shape[1]
        width = jax.tree.leaves(state.weights)[0].shape[-1]
        dtype = jax.tree.leaves(state.weights)[0].dtype
        initial = rule.initial_state(params, width, window, dtype)
        state = select(ended, initial, state)
        if streams is not None:
            streams = jax.vmap(
                lambda level, stream: select(ended & (completed % 2**level == 0), initial, stream)
            )(jnp.arange(1, room + 1), streams)
    key_sum = cache.key_sum
    if key_sum is not None:
        key_sum = jnp.where(ended, 0, key_sum)
    return cache._replace(
        state=state,
        key_sum=key_sum,
        memories=memories,
        descriptors=descriptors,
        streams=streams,
    )


def _after(y: Array, slot: Array) -> Array:
    """`slot`, in a way that depends on a head's output `y`.

    Writing there then waits for all reads of the memories: XLA would otherwise copy all of them for
    every token, not knowing which comes first. And each head has an index of its own, without
    which a TPU wants the slots of all heads side by side, and copies them to have them so.
    """
    most = jnp.iinfo(slot.dtype).max
    return jnp.minimum(slot, jnp.where(jnp.isnan(y[0, 0]), most, most - 1))
