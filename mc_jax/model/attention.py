"""Softmax attention with rotary positions, for hybrids and the Transformer++ baseline."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.device import on_tpu
from mc_jax.memory.network import accumulator
from mc_jax.model.cache import AttentionCache, last_tokens
from mc_jax.model.config import ModelConfig
from mc_jax.model.layers import output_projection, projection
from mc_jax.model.splash import splash
from mc_jax.typing import Array, Float, Int

# Of jax.nn.dot_product_attention.
_IMPLEMENTATIONS: dict[str, Literal["xla", "cudnn"] | None] = {
    "auto": None,
    "xla": "xla",
    "cudnn": "cudnn",
}


class Attention(nn.Module):
    """Causal multi-head attention by JAX's: on a TPU splash attention, elsewhere that of `jax.nn`.

    In float64 it is Flax's.

    Attributes:
      config: the model's.
      sliding: whether a token sees only the last `attention.window` ones, itself among them.
    """

    config: ModelConfig
    sliding: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length dim"],
        cache: AttentionCache | None = None,
        position: Int[Array, "*batch"] | int = 0,
        lengths: Array | None = None,
    ) -> tuple[Float[Array, "batch length dim"], AttentionCache]:
        """Mix the tokens of each sequence, causally.

        Args:
          x: tokens.
          cache: of those before; None where the sequences start.
          position: how many were before, [] or [batch].
          lengths: how many of the tokens are there, [] or [batch]; None for all.
        """
        config, attention = self.config, self.config.attention
        qkv = projection(config, (3, config.num_heads, config.head_dim), "qkv")(x)
        qk = rotary(qkv[:, :, :2], attention.rope_theta, position)
        q, k = jnp.unstack(qk, axis=2)
        v = qkv[:, :, 2]
        window = attention.window if self.sliding else None
        if cache is None:
            y = _fresh(q, k, v, window, attention.implementation)
            after = AttentionCache(k, v)
            if window is not None:
                none = jnp.zeros((x.shape[0], window - 1, *k.shape[2:]), k.dtype)
                after = AttentionCache(*(last_tokens(none, x, lengths) for x in (k, v)))
        elif window is None:
            y, after = _with_all(q, AttentionCache(k, v), cache, jnp.asarray(position))
        else:
            y = _with_window(q, AttentionCache(k, v), cache, jnp.asarray(position))
            after = jax.tree.map(
                lambda old, new: last_tokens(old, new, lengths), cache, AttentionCache(k, v)
            )
        return output_projection(config, 2, "out")(y), after


def _fresh(q: Array, k: Array, v: Array, window: int | None, implementation: str) -> Array:
    """Outputs of the tokens of sequences that start here."""
    if q.dtype == jnp.float64:
        back = jnp.arange(q.shape[1])[:, None] - jnp.arange(q.shape[1])
        return _attend(q, AttentionCache(k, v), (back >= 0) & (back < (window or q.shape[1])))
    if implementation == "splash" or (implementation == "auto" and on_tpu()):
        return splash(q, k, v, window)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=_IMPLEMENTATIONS[implementation],
    )


def _with_all(
    q: Array, new: AttentionCache, cache: AttentionCache, position: Array
) -> tuple[Array, AttentionCache]:
    """Outputs of tokens that see all before them, and the cache with them in their slots.

    Without room for them, which inside `jit` nobody can make, outputs are NaN.
    """
    slots, length = cache.k.shape[1], q.shape[1]

    def put(kept: Array, x: Array) -> Array:
        at = 0 if position.ndim else None
        place = jax.vmap(lambda k, x, i: lax.dynamic_update_slice_in_dim(k, x, i, 0), (0, 0, at))
        return place(kept, x.astype(kept.dtype), position)

    after = jax.tree.map(put, cache, new)
    token = position[..., None] + jnp.arange(length)
    seen = jnp.arange(slots) <= token[..., None]
    y = _attend(q, after, seen)
    fits = position + length <= slots
    return jnp.where(fits.reshape(-1, 1, 1, 1), y, jnp.nan), after


def _with_window(q: Array, new: AttentionCache, cache: AttentionCache, position: Array) -> Array:
    """Outputs of tokens that see the last ones only."""
    before, length = cache.k.shape[1], q.shape[1]
    both = jax.tree.map(lambda old, x: jnp.concatenate([old.astype(x.dtype), x], 1), cache, new)
    back = before + jnp.arange(length)[:, None] - jnp.arange(before + length)
    exists = position[..., None, None] - before + jnp.arange(before + length) >= 0
    return _attend(q, both, (back >= 0) & (back <= before) & exists)


def _attend(q: Array, kept: AttentionCache, seen: Array) -> Array:
    """Softmax attention to the slots that each token has `seen`, [*batch, length, slots]."""
    mask = seen.reshape(-1, 1, *seen.shape[-2:])
    if q.dtype == jnp.float64:
        # That of jax.nn takes its softmax in float32, whatever it is given.
        return nn.dot_product_attention(q, kept.k, kept.v, mask=mask)
    return jax.nn.dot_product_attention(q, kept.k, kept.v, mask=mask, implementation="xla")


def rotary(
    x: Float[Array, "batch length *heads head_dim"],
    theta: float,
    position: Int[Array, "*batch"] | int = 0,
) -> Float[Array, "batch length *heads head_dim"]:
    """Rotary position embedding: the product of two rotated vectors depends on their distance.

    Feature i of the first half and feature i of the second are turned by
    `position * theta ** (-2 i / head_dim)`, in float32.

    Args:
      x: queries or keys; the head's width is even.
      theta: base of the wavelengths.
      position: of the first token, [] or [batch].
    """
    length, width, dtype = x.shape[1], x.shape[-1], accumulator(x.dtype)
    frequency = theta ** (-jnp.arange(0, width, 2, dtype=dtype) / width)
    token = jnp.asarray(position)[..., None] + jnp.arange(length)
    angle = token[..., None].astype(dtype) * frequency
    angle = angle.reshape(-1, length, *(1,) * (x.ndim - 3), width // 2)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(dtype), 2, -1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)
