"""Small layers that blocks share."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from mc_jax.device import on_cpu
from mc_jax.kernels import gated_norm
from mc_jax.memory.network import accumulator
from mc_jax.model.config import ModelConfig
from mc_jax.sharding import active_mesh, constrain
from mc_jax.typing import Array, Float

NORMALISE_EPS = 1e-6


def projection(config: ModelConfig, features: int | tuple[int, ...], name: str) -> nn.Module:
    """A linear map of the residual stream, without bias."""
    return nn.DenseGeneral(
        features,
        use_bias=False,
        dtype=config.compute_dtype,
        dot_general_cls=_dot_general,
        name=name,
    )


def output_projection(config: ModelConfig, inputs: int, name: str) -> nn.Module:
    """A linear map of the last `inputs` axes back into the residual stream, without bias.

    Two such maps a block add up there: scaled so that the sum starts with variance one.
    """
    return nn.DenseGeneral(
        config.dim,
        axis=tuple(range(-inputs, 0)),
        use_bias=False,
        dtype=config.compute_dtype,
        dot_general_cls=_dot_general,
        kernel_init=nn.initializers.variance_scaling(
            1 / (2 * config.num_layers), "fan_in", "truncated_normal"
        ),
        name=name,
    )


def product(
    multiply: Callable[[Array, Array], Array],
    x: Float[Array, "batch length *inputs"],
    kernel: Array,
) -> Float[Array, "batch length *features"]:
    """A product of activations and a kernel, by a `multiply` of two matrices.

    The kernel's gradient sums over sequences and tokens. Where these are one axis and all features
    another, XLA on a CPU multiplies arrays as they lie, which it else transposes before.

    Args:
      multiply: gives [rows, columns] from [rows, inner] and [inner, columns].
      x: activations.
      kernel: [*inputs, *features].
    """
    tokens, features = x.shape[:2], kernel.shape[x.ndim - 2 :]
    rows = x.reshape(math.prod(tokens), -1)
    return multiply(rows, kernel.reshape(rows.shape[1], -1)).reshape(*tokens, *features)


def on_one_cpu() -> bool:
    """Whether the device is a CPU, and the axes of activations are not split over several."""
    return on_cpu() and active_mesh() is None


def _dot_general() -> Callable[..., Array]:
    """The `dot_general` of `nn.DenseGeneral`."""

    def dot_general(x: Array, kernel: Array, axes: Any, precision: Any) -> Array:
        return product(functools.partial(jnp.matmul, precision=precision), x, kernel)

    return dot_general if on_one_cpu() else lax.dot_general


class ConvKernel(nn.Module):
    """Kernel [width, *channels] of a depthwise causal convolution."""

    width: int

    @nn.compact
    def __call__(self, channels: tuple[int, ...]) -> Float[Array, " width *channels"]:
        """The parameter."""
        initial = nn.initializers.normal(self.width**-0.5)
        return self.param("kernel", initial, (self.width, *channels))


def causal_conv(
    kernel: Float[Array, " width *channels"],
    x: Float[Array, "batch blocks *channels block_len"],
    tail: Float[Array, "batch before *channels"] | None = None,
) -> Array:
    """Mix each channel over its last `width` tokens: `y_t = sum_{i < width} w_i x_{t-i}`.

    Written as shifted sums: XLA's grouped convolution is over ten times slower on a CPU.

    Args:
      kernel: w.
      x: blocks of tokens; a token sees those of the block before, too.
      tail: the `width - 1` tokens before the first; None for zeros.
    """
    before, block_len = kernel.shape[0] - 1, x.shape[-1]
    assert x.shape[1] == 1 or before <= block_len, "a token sees the block before at most"
    kernel = kernel[..., None].astype(x.dtype)
    # What a block needs of the one before.
    ends = x[:, :-1, ..., max(block_len - before, 0) :]
    missing = before - ends.shape[-1]
    ends = jnp.pad(ends, [(0, 0), (1, 0), *[(0, 0)] * (x.ndim - 3), (missing, 0)])
    if tail is not None:
        ends = ends.at[:, 0].set(jnp.moveaxis(tail, 1, -1))
    x = jnp.concatenate([ends, x], -1)
    return sum(w * x[..., i : i + block_len] for i, w in enumerate(kernel[::-1]))


def conv_rows(
    kernel: Float[Array, " width *channels"],
    x: Float[Array, "batch length *channels"],
    tail: Float[Array, "batch before *channels"] | None = None,
) -> Array:
    """As `causal_conv`, with tokens in rows: a GPU reads shifted rows as they lie."""
    before, length = kernel.shape[0] - 1, x.shape[1]
    if tail is None:
        x = jnp.pad(x, [(0, 0), (before, 0), *[(0, 0)] * (x.ndim - 2)])
    else:
        x = jnp.concatenate([tail, x], 1)
    kernel = kernel[::-1].astype(x.dtype)
    return sum(w * x[:, i : i + length] for i, w in enumerate(kernel))


class GatedNorm(nn.Module):
    """RMSNorm over each head with a learned scale, times `silu(gate)`, typed `dtype`."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        y: Float[Array, "batch length heads head_dim"],
        gate: Float[Array, "batch length heads head_dim"],
    ) -> Float[Array, "batch length heads head_dim"]:
        """What heads have read, normed and gated."""
        scale = self.param("scale", nn.initializers.ones, y.shape[-1:], jnp.float32)
        gate = gate.astype(self.dtype)
        if active_mesh() is None and gated_norm.worth_tiling(y.shape):
            return gated_norm.gated_norm(y, gate, scale, NORMALISE_EPS)
        y = y.astype(accumulator(y.dtype))
        factor = lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + NORMALISE_EPS)
        return (y * (factor * scale)).astype(self.dtype) * nn.silu(gate)


class SwiGLU(nn.Module):
    """Feed-forward `W_out (silu(W_gate x) * W_in x)`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch length dim"]) -> Float[Array, "batch length dim"]:
        """Transform every token by itself."""
        hidden = projection(self.config, (2, self.config.mlp_dim), "in")(x)
        hidden = constrain(hidden, "batch", "length", None, "mlp")
        hidden = nn.silu(hidden[:, :, 0]) * hidden[:, :, 1]
        return output_projection(self.config, 1, "out")(hidden)


def unit(x: Array, axis: int = -1) -> Array:
    """`x` at length 1 along `axis`; the gradient stays finite at 0."""
    x32 = x.astype(accumulator(x.dtype))
    square = jnp.sum(x32 * x32, axis, keepdims=True)
    return (x32 * lax.rsqrt(square + NORMALISE_EPS)).astype(x.dtype)
