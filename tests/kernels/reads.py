"""What tests of kernels share: outputs with gradients, and when two of them agree."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.compiling import quick_jit

TOLERANCE = {jnp.float32: 2e-5, jnp.bfloat16: 1e-2}


def program(op, **options):
    """Compiled `(args, cotangents)` to what `with_gradients` gives."""

    def read(*args):
        y, own = op(*args, **options)
        return y.astype(jnp.float32), own

    def run(args, cotangents):
        outputs, back = jax.vjp(read, *args)
        return {"outputs": outputs, "gradients": back(cotangents)}

    return quick_jit(run)


def with_gradients(op, args, cotangents, **options) -> dict:
    """Outputs of `op(*args, **options)` in float32, and its gradients."""
    return program(op, **options)(args, cotangents)


def assert_close(actual, expected, tolerance: float, same_types: bool = False) -> None:
    """Every leaf has the expected one's shape and is within `tolerance` of its largest element.

    Args:
      actual: leaves, all finite.
      expected: in the same order; of a wider type where results are held against exact ones.
      tolerance: see above.
      same_types: whether leaves have the expected ones' types, too.
    """
    found = jax.tree.leaves_with_path(actual)
    for (path, x), y in zip(found, jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        assert x.shape == y.shape, f"{name}: {x.shape}, not {y.shape}"
        assert x.dtype == y.dtype or not same_types, f"{name}: {x.dtype}, not {y.dtype}"
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.all(np.isfinite(x)), name
        error, largest = np.abs(x - y).max(initial=0), np.abs(y).max(initial=0)
        assert error <= tolerance * largest < np.inf, f"{name}: {error:.1e} of {largest:.1e}"


def heads_and_sequences(args_of):
    """Arguments with axes of 2 sequences and 3 heads in front; `args_of(seed)` gives one head's."""
    heads = [args_of(seed) for seed in range(6)]
    return jax.tree.map(lambda *x: jnp.stack(x).reshape(2, 3, *x[0].shape), *heads)
