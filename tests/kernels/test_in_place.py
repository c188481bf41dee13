"""Loops over tiles of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mc_jax.kernels.in_place import TILE, tokens_second


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("tokens", [1, 300, TILE, 3 * TILE])
def test_tokens_second_and_its_gradient(tokens, dtype):
    y = jax.random.normal(jax.random.key(0), (2, 3, 5, tokens)).astype(dtype)
    moved, back = jax.vjp(tokens_second, y)
    np.testing.assert_array_equal(moved, jnp.moveaxis(y, -1, 1))
    np.testing.assert_array_equal(back(2 * moved)[0], 2 * y)
