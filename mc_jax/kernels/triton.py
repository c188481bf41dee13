"""What the kernels of a GPU share: where they run, and blocks that are whole arrays."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mc_jax.device import on_gpu
from mc_jax.typing import Array

# Widths of a matrix: Triton's blocks are powers of two, and products start at 16.
WIDTHS = (16, 32, 64, 128)
# Compute capability from which on products take bfloat16.
AMPERE = 8.0
# Those of data centres, whose multiprocessors have 160 KB of shared memory or more, others 100.
LARGE = (8.0, 9.0, 10.0)


def runs_triton(implementation: str | None, reason: str | None) -> bool:
    """Whether what is named is a GPU's kernel here: None or pallas, and no `reason` not to."""
    return implementation in (None, "pallas") and on_gpu() and not reason


def stages() -> int:
    """How far loads of blocks of 128 x 128 run ahead, as shared memory allows."""
    return 3 if _capability() in LARGE else 2


def _capability() -> float:
    """That of an NVIDIA GPU; of one that is only described nothing is known. Others have 0."""
    try:
        return float(getattr(jax.local_devices()[0], "compute_capability", AMPERE))
    except ValueError:
        return 0.0


def no_triton(dtype: jnp.dtype, *widths: int) -> str | None:
    """Why no kernel runs on this GPU; None if those do that these inputs suit.

    Args:
      dtype: of the inputs.
      widths: rows and columns of matrices.
    """
    if dtype != jnp.bfloat16:
        return f"on a GPU the kernel takes bfloat16, not {jnp.dtype(dtype)}"
    if any(width not in WIDTHS for width in widths):
        allowed, found = ", ".join(map(str, WIDTHS)), " x ".join(map(str, widths))
        return f"on a GPU the kernel takes widths of {allowed}, not {found}"
    # On AMD's no kernel has been tried.
    if _capability() < AMPERE:
        found = jax.local_devices()[0].compute_capability
        return f"the kernel needs an NVIDIA GPU of {AMPERE} or more, not {found}"
    return None


def whole(x: Array) -> pl.BlockSpec:
    """A block of a whole array, for every program."""
    return pl.BlockSpec(x.shape, lambda *_: (0,) * len(x.shape))
