"""Activations of cached memories inside a kernel, with their slopes.

They are functions of half their argument, which most of them need; a kernel halves its queries,
which rounds nothing. Where results are rounded to bfloat16, a GELU by way of tanh is accurate
enough and leaves the vector units less to do than that of a write, whose second derivatives are
needed as well.
"""

import math

import jax.numpy as jnp

from mc_jax.kernels import activations
from mc_jax.typing import Array

ACTIVATIONS = tuple(activations.ACTIVATIONS)

# `Φ(2h) = (1 + tanh(h P(h²))) / 2` for the standard normal distribution Φ and this polynomial P, to
# 5e-5, and `2h Φ(2h)` to 2.5e-5. P is fitted up to `FAR`, beyond which tanh is 1 in float32.
TANH_TERMS = (1.59501446, 0.29604984, -0.0112512)
FAR = 8.0


def value_and_slope(name: str, dtype: jnp.dtype, half: Array) -> tuple[Array, Array]:
    """The activation `name` and its first derivative at `x = 2 half`.

    Args:
      name: one of `ACTIVATIONS`.
      dtype: type that the results will be rounded to, for which they are accurate enough.
      half: in the type to compute in, float32 or that one.
    """
    if name == "gelu" and dtype == jnp.bfloat16:
        return _gelu_for_bfloat16(half)
    if name == "silu":
        return _silu(half)
    return activations.value_and_slope(name, dtype, 2 * half)


def _gelu_for_bfloat16(half: Array) -> tuple[Array, Array]:
    """`x Φ(x)` and `Φ + xφ`, φ the density."""
    square = half * half
    near = jnp.minimum(square, FAR)
    tanh = jnp.tanh(half * (TANH_TERMS[0] + near * (TANH_TERMS[1] + near * TANH_TERMS[2])))
    # The factor 2 of x is in the exponent.
    log2_density = square * (-2 / math.log(2)) + 1 - 0.5 * math.log2(2 * math.pi)
    return half + half * tanh, 0.5 + (0.5 * tanh + half * jnp.exp2(log2_density))


def _silu(half: Array) -> tuple[Array, Array]:
    """`x s` and `s (1 + x (1 - s))` for the logistic function `s = (1 + tanh(x / 2)) / 2`."""
    tanh = jnp.tanh(half)
    value, logistic = half + half * tanh, 0.5 + 0.5 * tanh
    return value, logistic + value * (0.5 - 0.5 * tanh)
