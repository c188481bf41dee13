"""What a program for a TPU is to `benchmarks.tpu_static`, and the sizes of all of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

HEADS, LENGTH, HEAD_DIM, SEGMENT_LEN = 8, 16384, 128, 256
Blocks = dict[str, Any]  # sizes that replace those of a kernel's default configuration


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One program to compile.

    Attributes:
      build: from the chip to a function and its arguments' shapes.
      pallas: what the names of its Pallas kernels contain; none for a program that is XLA's alone.
      flops: useful floating-point operations.
      bytes: HBM traffic with every array moved once.
      share: the part of the counted time that the work takes.
      arrays: gives what the kernel finds in arrays of scalar memory, where it branches on them.
    """

    build: Callable[[pltpu.TpuInfo], tuple[Callable, tuple]]
    pallas: tuple[str, ...]
    flops: int
    bytes: int
    share: float = 1.0
    arrays: Callable[[], int | None] = lambda: None


def shape(*sizes: int, dtype: Any = jnp.bfloat16) -> Any:
    """An array's shape, where a kernel's trees hold arrays."""
    return jax.ShapeDtypeStruct(sizes, dtype)
