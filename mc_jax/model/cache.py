"""What a language model keeps of the tokens that it has read. Arrays only.

The cache of every mixer begins with what the mixer had seen of no token at all, so that all that
it needs of the past is in it: tokens that a convolution or a window still looks back on, keys and
values, memories.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mc_jax.caching import Cache, reserve
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


def make_room(config: ModelConfig, cache: ModelCache, length: int) -> ModelCache:
    """A cache with room for `length` tokens in all; never less than it has.

    Args:
      config: of the model.
      cache: what `LanguageModel.extend` returned.
      length: tokens of the longest sequence, those already read included.
    """

    def grown(mixer: str, layer: Any) -> MixerCache:
        if mixer == "memory":
            memory = config.memory
            if not memory.options.caches:
                return layer
            room = reserve(
                layer.memory,
                length,
                segment_len=memory.segment_len,
                segmentation=memory.segmentation,
            )
            return layer._replace(memory=room)
        if mixer == "sliding":
            return layer
        missing = max(0, length - layer.k.shape[1])
        return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, missing), (0, 0), (0, 0)]), layer)

    def group(layers: Any) -> tuple[MixerCache, ...]:
        return tuple(grown(m, layer) for m, layer in zip(config.pattern, layers, strict=True))

    if config.scan_layers:
        # The counter of tokens is one for the sequences of a layer, as `grow` wants it.
        return cache._replace(layers=jax.vmap(group)(cache.layers))
    return cache._replace(layers=tuple(map(group, cache.layers)))
