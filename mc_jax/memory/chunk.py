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

from mc_jax.memory.network import (
    Linear,
    Network,
    NormParams,
    Weights,
    accumulator,
    forward,
    matmul,
)
from mc_jax.typing import Array, Float

Loss = Callable[[Array, Array], Array]


class Coefficients(NamedTuple):
    """What the gates of a chunk make of its starting state and gradients, at each token t.

    Attributes:
      weights: A(t), the weight of W_0 in W_t.
      grads: G(t, i), minus the weight of token i's gradient in W_t, at [i, t]. With a
        sliding-window write the rows start that many tokens before the chunk.
      momentum: c(t), the weight of S_0 in W_t; None without momentum.
      log_weights: log A(t), where G(t, i) is A(t) / A(i); else None.
    """

    weights: Float[Array, " chunk"]
    grads: Float[Array, "window_chunk chunk"]
    momentum: Float[Array, " chunk"] | None = None
    log_weights: Float[Array, " chunk"] | None = None


class EndCoefficients(NamedTuple):
    """The same for the state after the chunk: all that going on from it takes.

    Attributes:
      weights: weight of W_0 in the last W.
      grads: minus the weights of the gradients in the last W.
      log_decay: log of the chunk's total decay.
      momentum: weight of S_0 in the last W; None without momentum, as the rest.
      momentum_kept: weight of S_0 in the last S.
      momentum_grads: minus the weights of the gradients in the last S.
    """

    weights: Float[Array, ""]
    grads: Float[Array, " window_chunk"]
    log_decay: Float[Array, ""]
    momentum: Float[Array, ""] | None = None
    momentum_kept: Float[Array, ""] | None = None
    momentum_grads: Float[Array, " window_chunk"] | None = None


class Factors(NamedTuple):
    """Inner gradients of a chunk's tokens as outer products, per linear map."""

    delta: dict[str, Float[Array, "out window_chunk"]]
    inputs: dict[str, Float[Array, "in window_chunk"]]


class Chunk(NamedTuple):
    """What, with its coefficients, gives every token's weights inside one chunk.

    Attributes:
      weights: W_0, at the chunk's start.
      momentum: S_0; None without momentum.
      factors: the tokens' gradients.
    """

    weights: Weights
    momentum: Weights | None
    factors: Factors


def gradient_factors(
    network: Network,
    norm: NormParams | None,
    loss: Loss,
    weights: Weights,
    k: Float[Array, "head_dim chunk"],
    v: Float[Array, "head_dim chunk"],
) -> Factors:
    """Gradients of `loss(M(k_i), v_i)` at fixed `weights`, one outer product a token.

    A constant added to the output of a linear map has that map's `delta` as its gradient.
    """
    dtype = k.dtype

    def total_loss(offsets):
        inputs = {}

        def linear(name: str, x: Array) -> Array:
            inputs[name] = x
            return matmul(getattr(weights, name), x, dtype) + offsets[name]

        return jnp.sum(loss(forward(network, linear, norm, k), v)), inputs

    offsets = {
        name: jnp.zeros((w.shape[0], k.shape[1]), accumulator(dtype))
        for name, w in weights._asdict().items()
    }
    return Factors(*jax.grad(total_loss, has_aux=True)(offsets))


def online_linear(chunk: Chunk, coefficients: Coefficients, dtype: jnp.dtype) -> Linear:
    """The linear maps of the online memory: column t of `x` meets the weights of token t."""

    def linear(name: str, x: Float[Array, "in chunk"]) -> Float[Array, "out chunk"]:
        scores = matmul(chunk.factors.inputs[name].T, x, dtype) * coefficients.grads
        y = coefficients.weights * matmul(getattr(chunk.weights, name), x, dtype)
        y = y - matmul(chunk.factors.delta[name], scores, dtype)
        if chunk.momentum is not None:
            y = y + coefficients.momentum * matmul(getattr(chunk.momentum, name), x, dtype)
        return y

    return linear


def advance(chunk: Chunk, end: EndCoefficients, dtype: jnp.dtype) -> tuple[Weights, Weights | None]:
    """Weights and momentum after the last token of the chunk."""
    factors = chunk.factors

    def summed(name: str, scale: Array) -> Array:
        return matmul(factors.delta[name] * scale, factors.inputs[name].T, dtype)

    weights = {
        name: end.weights * w - summed(name, end.grads)
        for name, w in chunk.weights._asdict().items()
    }
    kind = type(chunk.weights)
    if chunk.momentum is None:
        return kind(**weights), None
    momentum = chunk.momentum._asdict()
    weights = {name: w + end.momentum * momentum[name] for name, w in weights.items()}
    momentum = {
        name: end.momentum_kept * s - summed(name, end.momentum_grads)
        for name, s in momentum.items()
    }
    return kind(**weights), kind(**momentum)
