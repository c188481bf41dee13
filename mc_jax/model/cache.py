"""What a language model keeps of the tokens that it has read. Arrays only.

The cache of every mixer begins with what the mixer had seen of no token at all, so that all that
it needs of the past is in it: tokens that a convolution or a window still looks back on, keys and
values, memories.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mc_jax.caching import Cache
from mc_jax.caching.cache import grow
from mc_jax.caching.segments import capacity_for
from mc_jax.model.config import ModelConfig
from mc_jax.typing import Array, Float, Int


class MemoryLayerCache(NamedTuple):
    """Cache of a memory layer.

    Attributes:
      tail: queries, keys and values of the last tokens, before the convolution that mixes them
        into the next ones.
      memory: the memories.
    """

    tail: Float[Array, "batch before 3 heads head_dim"]
    memory: Cache


class AttentionCache(NamedTuple):
    """Cache of an attention layer: keys, rotated, and values.

    Full attention keeps a slot for every token, in their order, with free ones behind; sliding
    attention the last `window - 1` tokens.
    """

    k: Float[Array, "batch slots heads head_dim"]
    v: Float[Array, "batch slots heads head_dim"]


MixerCache = MemoryLayerCache | AttentionCache


class ModelCache(NamedTuple):
    """Cache of a language model.

    Attributes:
      position: tokens read so far; [batch] where sequences have different lengths.
      layers: for each repetition of the pattern a cache for each of its mixers. With
        `scan_layers` one such, whose arrays have the repetitions on their first axis.
    """

    position: Int[Array, "*batch"]
    layers: tuple[tuple[MixerCache, ...], ...] | tuple[MixerCache, ...]


def last_tokens(before: Array, x: Array, lengths: Array | None) -> Array:
    """The last `before.shape[1]` tokens of those before a call and the call's own.

    Args:
      before: tokens before the call [batch, before, ...].
      x: the call's tokens [batch, length, ...].
      lengths: how many of them are there, [] or [batch]; None for all.
    """
    size, length = before.shape[1], x.shape[1]
    before = before.astype(x.dtype)
    if lengths is None:
        both = jnp.concatenate([before, x[:, max(length - size, 0) :]], 1)
        return both[:, both.shape[1] - size :]
    both = jnp.concatenate([before, x], 1)
    index = jnp.broadcast_to(lengths, x.shape[:1])[:, None] + jnp.arange(size)
    return jnp.take_along_axis(both, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), 1)


def sequences_of(config: ModelConfig, cache: ModelCache) -> int:
    """How many sequences a cache is of."""
    return jax.tree.leaves(cache.layers)[0].shape[1 if config.scan_layers else 0]


def make_room(
    config: ModelConfig, cache: ModelCache, length: int, most: int | None = None
) -> ModelCache:
    """A cache with room for `length` tokens in all; never less than it has.

    Args:
      config: of the model.
      cache: what `LanguageModel.extend` returned.
      length: tokens of the longest sequence, those already read included.
      most: memories that a head is given room for at most; None for no limit.
    """
    memory = config.memory
    room = capacity_for(length, memory.segment_len, memory.segmentation)
    if most is not None:
        room = min(room, most)
    cache = map_memories(config, cache, lambda layer: grow(layer, room))

    def grown(mixer: str, layer: Any) -> MixerCache:
        if mixer != "attention":
            return layer
        # [..., tokens, heads, head_dim]
        missing = max(0, length - layer.k.shape[-3])
        behind = [(0, missing), (0, 0), (0, 0)]
        return jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 3) + behind), layer)

    return map_layers(config, cache, grown)


def map_layers(
    config: ModelConfig, cache: ModelCache, change: Callable[[str, Any], MixerCache]
) -> ModelCache:
    """The cache with what `change` makes of each mixer's name and cache.

    With `scan_layers` the arrays that it is given have the repetitions on their first axis.
    """

    def group(layers: Any) -> tuple[MixerCache, ...]:
        return tuple(change(m, layer) for m, layer in zip(config.pattern, layers, strict=True))

    if config.scan_layers:
        return cache._replace(layers=group(cache.layers))
    return cache._replace(layers=tuple(map(group, cache.layers)))


def map_memories(
    config: ModelConfig, cache: ModelCache, change: Callable[[Cache], Cache]
) -> ModelCache:
    """The cache with what `change` makes of the memories of each layer that caches some."""
    if not config.memory.options.caches:
        return cache
    change = jax.vmap(change) if config.scan_layers else change

    def changed(mixer: str, layer: Any) -> MixerCache:
        return layer._replace(memory=change(layer.memory)) if mixer == "memory" else layer

    return map_layers(config, cache, changed)


def memories_of(config: ModelConfig, cache: ModelCache) -> list[Cache]:
    """The memories of each layer that caches some; with `scan_layers` of each of the pattern."""
    if not config.memory.options.caches:
        return []
    groups: Any = (cache.layers,) if config.scan_layers else cache.layers
    return [
        layer.memory
        for group in groups
        for mixer, layer in zip(config.pattern, group, strict=True)
        if mixer == "memory"
    ]
