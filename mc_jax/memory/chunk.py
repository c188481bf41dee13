"""The chunk-parallel form that every update rule shares.

Inside a chunk all inner gradients are taken at the weights of the chunk's start, so the gradient
of token i for one linear map is an outer product `delta_i h_iᵀ` and

    W_t = A(t) W_0 + c(t) S_0 - sum_{i<=t} G(t, i) delta_i h_iᵀ

with coefficients that depend on the gates alone. Reading token t's own weights is then two matmuls
and a causal mask (`online_linear`); per-token weights never exist.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mc_jax.memory.network import Linear, Network, NormParams, Weights, accumulator, matmul
from mc_jax.typing import Array, Float

Loss = Callable[[Array, Array], Array]


class Coefficients(NamedTuple):
    """What the gates of a chunk make of its starting state and of its gradients.

    Attributes:
      weights: A(t), the weight of W_0 in W_t.
      grads: G(t, i), minus the weight of token i's gradient in W_t. With a sliding-window write of
        `window` tokens the columns start that many tokens before the chunk.
      momentum: c(t), the weight of S_0 in W_t; None without momentum.
      momentum_end: (weight of S_0, minus the weights of the gradients) in the chunk's last S.
      log_decay: log of the chunk's total decay A(end).
    """

    weights: Float[Array, " chunk"]
    grads: Float[Array, "chunk window_chunk"]
    momentum: Float[Array, " chunk"] | None
    momentum_end: tuple[Float[Array, ""], Float[Array, " chunk"]] | None
    log_decay: Float[Array, ""]


class Factors(NamedTuple):
    """Inner gradients of a chunk's tokens as outer products, per linear map."""

    delta: dict[str, Float[Array, "window_chunk out"]]
    inputs: dict[str, Float[Array, "window_chunk in"]]


class Chunk(NamedTuple):
    """All that is needed to read every token's weights inside one chunk."""

    weights: Weights
    momentum: Weights | None
    coefficients: Coefficients
    factors: Factors


def gradient_factors(
    network: Network,
    norm: NormParams | None,
    loss: Loss,
    weights: Weights,
    k: Float[Array, "chunk head_dim"],
    v: Float[Array, "chunk head_dim"],
) -> Factors:
    """Gradients of `loss(M(k_i), v_i)` at fixed `weights`, one outer product a token.

    A constant added to the output of a linear map has that map's `delta` as its gradient.
    """
    dtype = k.dtype

    def total_loss(offsets):
        inputs = {}

        def linear(name: str, x: Array) -> Array:
            inputs[name] = x
            return matmul(x, getattr(weights, name), dtype) + offsets[name]

        return jnp.sum(loss(network.forward(linear, norm, k), v)), inputs

    offsets = {
        name: jnp.zeros((k.shape[0], w.shape[0]), accumulator(dtype))
        for name, w in weights._asdict().items()
    }
    return Factors(*jax.grad(total_loss, has_aux=True)(offsets))


def online_linear(chunk: Chunk, dtype: jnp.dtype) -> Linear:
    """The linear maps of the online memory: row t of `x` meets the weights of token t."""
    coefficients = chunk.coefficients

    def linear(name: str, x: Float[Array, "chunk in"]) -> Float[Array, "chunk out"]:
        scores = matmul(x, chunk.factors.inputs[name], dtype) * coefficients.grads
        y = coefficients.weights[:, None] * matmul(x, getattr(chunk.weights, name), dtype)
        y = y - matmul(scores, chunk.factors.delta[name].T, dtype)
        if chunk.momentum is not None:
            s = getattr(chunk.momentum, name)
            y = y + coefficients.momentum[:, None] * matmul(x, s, dtype)
        return y

    return linear


def advance(chunk: Chunk, dtype: jnp.dtype) -> tuple[Weights, Weights | None]:
    """Weights and momentum after the last token of the chunk."""
    coefficients, factors = chunk.coefficients, chunk.factors

    def decayed_sum(name: str, scale: Array) -> Array:
        delta = factors.delta[name] * scale[:, None]
        return matmul(delta.T, factors.inputs[name].T, dtype)

    weights = {
        name: coefficients.weights[-1] * w - decayed_sum(name, coefficients.grads[-1])
        for name, w in chunk.weights._asdict().items()
    }
    kind = type(chunk.weights)
    if chunk.momentum is None:
        return kind(**weights), None
    decay, scale = coefficients.momentum_end
    momentum = chunk.momentum._asdict()
    weights = {name: w + coefficients.momentum[-1] * momentum[name] for name, w in weights.items()}
    momentum = {name: decay * s - decayed_sum(name, scale) for name, s in momentum.items()}
    return kind(**weights), kind(**momentum)
