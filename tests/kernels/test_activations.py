"""Activations of the kernel against those of the project, with their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mc_jax.kernels.activations import ACTIVATIONS, value_and_slope
from mc_jax.memory import network


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", network.ACTIVATIONS)
def test_value_slope_and_curvature(name, dtype, x64):
    x = np.linspace(-12, 12, 4801) + 1e-3  # not the corner of relu
    f = network.ACTIVATIONS[name]
    expected = [jax.vmap(g)(jnp.float64(x)) for g in (f, jax.grad(f), jax.grad(jax.grad(f)))]
    found = ACTIVATIONS[name](jnp.asarray(x, jnp.float32), jnp.dtype(dtype))
    # In float32 the slope 1 - tanh² cancels where tanh is close to 1, as in the project's own, and
    # its factors grow with |x|: one last bit of tanh, which compilers round differently, is 1e-4.
    tolerance = 2e-4 if name == "gelu_tanh" else 1e-6
    for order, (y, exact) in enumerate(zip(found, expected, strict=True)):
        atol = tolerance if order else 1e-6
        np.testing.assert_allclose(y, exact, atol=atol, rtol=2e-6, err_msg=f"derivative {order}")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_far_from_zero(name, dtype):
    x = jnp.asarray([-1e15, -1e6, -100.0, 100.0, 1e6, 1e15], jnp.float32)
    value, slope = value_and_slope(name, jnp.dtype(dtype), x)
    np.testing.assert_allclose(value, jnp.maximum(x, 0), atol=1e-6)
    np.testing.assert_allclose(slope, x > 0, atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(value_and_slope(name, jnp.dtype(dtype), x)[1]))(x)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
