"""Products of which a part is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mc_jax.kernels.deep_write.products import dot
from tests.kernels.deep_write.cases import assert_close


@pytest.mark.parametrize("rows", [16, 32])
@pytest.mark.parametrize("axis", [0, 1])
def test_known_rows_are_not_taken_again(axis, rows):
    rng = np.random.default_rng(0)
    a, b, y = (
        jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)
        for shape in [(32, 24), (40, 24) if axis else (24, 40), (32, 40)]
    )

    def product(a, b, known=None):
        return dot(a, b, axis, jnp.dtype(jnp.float32), known)

    expected, gradient = jax.vjp(product, a, b)
    # What is known is taken as it is, and changes no gradient of the operands.
    known = expected[:, :rows] + 1
    found, known_gradient = jax.vjp(lambda a, b: product(a, b, known), a, b)
    assert_close(found[:, :rows], known, 0)
    assert_close(found[:, rows:], expected[:, rows:], 1e-6)
    assert_close(known_gradient(y), gradient(y), 0)
