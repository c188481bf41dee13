"""What tests of the kernels that read memories share."""

import jax
import jax.numpy as jnp

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


def assert_close(actual, expected, tolerance: float) -> None:
    """Every leaf within `tolerance` of the largest element of the expected one."""
    found = jax.tree.leaves_with_path(actual)
    for (path, x), y in zip(found, jax.tree.leaves(expected), strict=True):
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
        largest = jnp.maximum(jnp.max(jnp.abs(y), initial=0), 1e-6)
        error = jnp.max(jnp.abs(x - y), initial=0) / largest
        assert error <= tolerance, f"{jax.tree_util.keystr(path)}: {error:.1e}"


def heads_and_sequences(args_of):
    """Arguments with axes of 2 sequences and 3 heads in front; `args_of(seed)` gives one head's."""
    heads = [args_of(seed) for seed in range(6)]
    return jax.tree.map(lambda *x: jnp.stack(x).reshape(2, 3, *x[0].shape), *heads)
