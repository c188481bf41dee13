"""Activations of the memory inside a kernel, with the slopes that its inner gradient takes.

Each is written with its first two derivatives, which share their transcendental part: a write
needs value and slope, and its gradient the curvature besides.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mc_jax.typing import Array

Derivatives = tuple[Array, Array, Array]

# Polynomials in |x| for log2 of the normal distribution's tail above |x|, fitted so that the
# largest error of `max(|x|, 1) tail` is least: 6.5e-7 and 1.5e-8. Their leading terms are negative,
# so that the tail of a large |x| is 0.
SHORT_TAIL = (-1.00000186, -1.15105205, -0.459414076, -5.23432402e-2, 7.28237784e-3, -5.00259501e-4)
LONG_TAIL = (
    *(-0.999999959, -1.15110694, -0.459193057, -5.2546436e-2, 7.14278195e-3),
    *(-2.02479061e-4, -1.57278724e-4, 3.29680027e-5, -2.27587065e-6),
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def value_and_slope(name: str, dtype: jnp.dtype, x: Array) -> tuple[Array, Array]:
    """The activation `name` and its first derivative.

    Args:
      name: one of `ACTIVATIONS`.
      dtype: type that the results will be rounded to, for which they are accurate enough.
      x: where; float32, as the results are.
    """
    value, slope, _ = ACTIVATIONS[name](x, dtype)
    return value, slope


@value_and_slope.defjvp
def _value_and_slope_jvp(name, dtype, primals, tangents):
    (x,), (dx,) = primals, tangents
    value, slope, curvature = ACTIVATIONS[name](x, dtype)
    return (value, slope), (slope * dx, curvature * dx)


def _gelu(x: Array, dtype: jnp.dtype) -> Derivatives:
    """`x Φ(x)`, Φ the standard normal distribution with density φ; `Φ + xφ`; `(2 - x²) φ`."""
    size = jnp.abs(x)
    terms = LONG_TAIL if dtype == jnp.float32 else SHORT_TAIL
    log_tail = jnp.full_like(x, terms[-1])
    for term in terms[-2::-1]:
        log_tail = log_tail * size + term
    tail = jnp.exp2(log_tail)
    density = (2 * jnp.pi) ** -0.5 * jnp.exp2((-0.5 / math.log(2)) * x * x)
    below = jnp.where(x < 0, tail, 1 - tail)
    return x * below, below + x * density, (2 - x * x) * density


def _gelu_tanh(x: Array, dtype: jnp.dtype) -> Derivatives:
    """`x (1 + tanh(p)) / 2` for `p = sqrt(2/π) (x + 0.044715 x³)`."""
    rate, cubic = (2 / jnp.pi) ** 0.5, 0.044715
    square = x * x
    tanh = jnp.tanh(rate * x * (1 + cubic * square))
    inner = rate * (1 + 3 * cubic * square)
    half, bump = 0.5 * (1 + tanh), 0.5 * (1 - tanh * tanh)
    # Far from 0 the bump is 0 and has to come before factors that overflow.
    rise = bump * inner
    curvature = 2 * rise + x * (bump * (6 * cubic * rate) * x - 2 * tanh * rise * inner)
    return x * half, half + x * rise, curvature


def _silu(x: Array, dtype: jnp.dtype) -> Derivatives:
    """`x s` for the logistic function s."""
    s = jax.nn.sigmoid(x)
    rest = 1 - s
    return x * s, s * (1 + x * rest), s * rest * (2 + x * (1 - 2 * s))


def _relu(x: Array, dtype: jnp.dtype) -> Derivatives:
    """`max(x, 0)`."""
    return jnp.maximum(x, 0), jnp.where(x > 0, 1.0, 0.0), jnp.zeros_like(x)


ACTIVATIONS: dict[str, Callable[[Array, jnp.dtype], Derivatives]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "relu": _relu,
}
