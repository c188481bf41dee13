"""What one MLP memory gives for a block of tokens inside a kernel, and the way back through it.

With `half = W2 q / 2`, `p = act(2 half)`, `y = W1 p` and `f` the features, and D their gradient:

    dgate = <D, f>        dy = gate * (D, or what the norm makes of it)
    du = (W1' dy) act'    dW1 = dy p'    dW2 = du q'    dq = W2' du

Tokens lie in the lanes.
"""

from typing import NamedTuple, Protocol

import jax.numpy as jnp
from jax import lax

from mc_jax.kernels.deep_read.activations import value_and_slope
from mc_jax.kernels.tiles import contract
from mc_jax.memory.network import NORM_EPS
from mc_jax.typing import Array

F32 = jnp.float32


class Facts(Protocol):
    """What is static about the memories of a call."""

    @property
    def activation(self) -> str:
        """The memory's activation."""
        ...

    @property
    def layer_norm(self) -> bool:
        """Whether the memory's output is normalised."""
        ...

    @property
    def dtype(self) -> jnp.dtype:
        """Type of the queries and of products."""
        ...


class Gradients(NamedTuple):
    """Of one memory's read; all but the gate's in float32."""

    q: Array
    gate: Array
    w1: Array
    w2: Array


def vector_dtype(narrow: bool) -> jnp.dtype:
    """The type that activations are computed in, where vector units may take bfloat16."""
    return jnp.dtype(jnp.bfloat16 if narrow else F32)


def read(
    facts: Facts, narrow: bool, w1: Array, w2: Array, half_q: Array, gate: Array | float
) -> Array:
    """`gate * f(q)` [head_dim, tokens], float32, for q halved."""
    half = contract(w2, half_q, (1, 0))
    value, _ = value_and_slope(facts.activation, facts.dtype, half.astype(vector_dtype(narrow)))
    y = contract(w1, value.astype(facts.dtype), (1, 0))
    if not facts.layer_norm:
        return gate * y
    mean, norm = moments(facts.dtype, y)
    scale = gate * norm
    return scale * y - scale * mean


def read_back(
    facts: Facts, narrow: bool, w1: Array, w2: Array, q: Array, dy: Array, gate: Array
) -> Gradients:
    """Gradients, given those of the features; the hidden layer is computed again."""
    half = contract(w2, 0.5 * q, (1, 0)).astype(vector_dtype(narrow))
    value, slope = value_and_slope(facts.activation, facts.dtype, half)
    value = value.astype(facts.dtype)
    if facts.layer_norm:
        y = contract(w1, value, (1, 0))
        mean, norm = moments(facts.dtype, y)
        dy, dgate = _through_norm((y - mean) * norm, norm, dy.astype(F32))
        dhidden = contract(w1, (gate * dy).astype(facts.dtype), (0, 0)) * slope
    else:
        back = contract(w1, dy, (0, 0))
        dgate = jnp.sum(back * value.astype(F32), 0, keepdims=True)
        dhidden = gate * (back * slope)
    dhidden = dhidden.astype(facts.dtype)
    dw1 = contract((gate * dy).astype(facts.dtype), value, (1, 1))
    dw2 = contract(dhidden, q, (1, 1))
    return Gradients(contract(w2, dhidden, (0, 0)), dgate, dw1, dw2)


def moments(dtype: jnp.dtype, y: Array) -> tuple[Array, Array]:
    """Mean over the first axis and what scales to variance 1, [1, tokens].

    Args:
      dtype: type of the operands that y is a product of.
      y: float32.
    """
    mean = jnp.mean(y, 0, keepdims=True)
    if dtype == jnp.bfloat16:
        # In one pass; what cancels is far below the rounding of the operands.
        variance = jnp.maximum(jnp.mean(y * y, 0, keepdims=True) - mean * mean, 0)
    else:
        variance = jnp.mean((y - mean) ** 2, 0, keepdims=True)
    return mean, lax.rsqrt(variance + NORM_EPS)


def _through_norm(features: Array, norm: Array, dfeatures: Array) -> tuple[Array, Array]:
    """Gradients of what is normalised, and of a gate on the features [1, tokens]."""
    along = jnp.sum(dfeatures * features, 0, keepdims=True)
    mean = jnp.mean(dfeatures, 0, keepdims=True)
    return norm * (dfeatures - mean - features * (along / features.shape[0])), along
