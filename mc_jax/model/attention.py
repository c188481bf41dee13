"""Softmax attention with rotary positions, for hybrids and the Transformer++ baseline."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mc_jax.model.config import ModelConfig
from mc_jax.model.layers import output_projection, projection
from mc_jax.typing import Array, Float

_IMPLEMENTATIONS: dict[str, Literal["xla", "cudnn"] | None] = {
    "auto": None,
    "xla": "xla",
    "cudnn": "cudnn",
}


class Attention(nn.Module):
    """Causal multi-head attention by `jax.nn.dot_product_attention`.

    Attributes:
      config: the model's.
      sliding: whether a token sees only the last `attention.window` ones, itself among them.
    """

    config: ModelConfig
    sliding: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch length dim"]) -> Float[Array, "batch length dim"]:
        """Mix the tokens of each sequence, causally."""
        config, attention = self.config, self.config.attention
        qkv = projection(config, (3, config.num_heads, config.head_dim), "qkv")(x)
        q, k = jnp.unstack(rotary(qkv[:, :, :2], attention.rope_theta), axis=2)
        y = jax.nn.dot_product_attention(
            q,
            k,
            qkv[:, :, 2],
            is_causal=True,
            local_window_size=(attention.window - 1, 0) if self.sliding else None,
            implementation=_IMPLEMENTATIONS[attention.implementation],
        )
        return output_projection(config, 2, "out")(y)


def rotary(
    x: Float[Array, "batch length *heads head_dim"], theta: float
) -> Float[Array, "batch length *heads head_dim"]:
    """Rotary position embedding: the product of two rotated vectors depends on their distance.

    Feature i of the first half and feature i of the second are turned by
    `position * theta ** (-2 i / head_dim)`, in float32.

    Args:
      x: queries or keys; the head's width is even.
      theta: base of the wavelengths.
    """
    length, width = x.shape[1], x.shape[-1]
    frequency = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = jnp.arange(length, dtype=jnp.float32)[:, None] * frequency
    angle = angle.reshape(length, *(1,) * (x.ndim - 3), width // 2)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)
