"""Activations of the kernels against those of the project."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mc_jax.kernels.deep_read.activations import ACTIVATIONS, value_and_slope
from mc_jax.memory import network

# Type of results, type to compute in, and the largest errors of value and slope.
PRECISIONS = [
    (jnp.float32, jnp.float32, 2e-6, 1e-4),
    (jnp.bfloat16, jnp.float32, 4e-5, 1e-4),
    (jnp.bfloat16, jnp.bfloat16, 2e-2, 2e-2),
]


@pytest.mark.parametrize(("dtype", "compute", "value_error", "slope_error"), PRECISIONS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_slope(name, dtype, compute, value_error, slope_error, x64):
    x = np.linspace(-6, 6, 2401) + 1e-3  # not the corner of relu
    half = jnp.asarray(x / 2, compute)
    f = network.ACTIVATIONS[name]
    exact = jnp.float64(2 * half)
    found = value_and_slope(name, jnp.dtype(dtype), half)
    np.testing.assert_allclose(found[0], f(exact), atol=value_error, rtol=value_error)
    np.testing.assert_allclose(found[1], jax.vmap(jax.grad(f))(exact), atol=slope_error)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_far_from_zero(name, dtype):
    x = jnp.asarray([-1e15, -1e6, -100.0, 100.0, 1e6, 1e15], jnp.float32)
    value, slope = value_and_slope(name, jnp.dtype(dtype), x / 2)
    np.testing.assert_allclose(value, jnp.maximum(x, 0), atol=1e-6)
    np.testing.assert_allclose(slope, x > 0, atol=1e-6)
