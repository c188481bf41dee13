"""The read of a matrix memory from each level: one op, three implementations."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import this_chip, vmem_room
from mc_jax.errors import InputError
from mc_jax.kernels.choice import choose
from mc_jax.kernels.level_read.pallas_tpu import MOST_TOKENS, read, vmem_bytes
from mc_jax.kernels.level_read.xla import reference, xla
from mc_jax.kernels.tiles import LANES
from mc_jax.typing import Array, Float

F32 = jnp.float32


def level_read(
    x: Float[Array, "in tokens"],
    weights: Sequence[Float[Array, "segments out in"]],
    gate: Float[Array, "levels tokens"],
    *,
    implementation: str | None = None,
) -> Float[Array, "out tokens"]:
    """Read the matrix of each level that belongs to a token's segment, for one head.

    `y_t = sum_l gate_lt W_l,s(t) x_t`, with s(t) the segment of token t.

    Args:
      x: inputs of whole segments; all other heads and sequences by `jax.vmap`.
      weights: of each level the matrix that each segment's tokens read, finite also where the
        gates are 0.
      gate: weights of the levels.
      implementation: reference | xla | pallas | pallas_interpret (the TPU kernel's steps on any
        device, slow); None picks pallas on a TPU where it can run, else xla.

    Returns:
      Outputs in float32 (float64 for float64).

    Raises:
      InputError: arrays that do not go together, or an implementation that is unknown or cannot
        run here.
    """
    if not weights:
        raise InputError("weights", weights, "at least one level")
    (width, tokens), (segments, *shape) = x.shape, weights[0].shape
    for level, w in enumerate(weights):
        if w.shape != (segments, shape[0], width):
            expected = str((segments, shape[0], width))
            raise InputError(f"weights[{level}].shape", w.shape, expected)
    if gate.shape != (len(weights), tokens):
        raise InputError("gate.shape", gate.shape, str((len(weights), tokens)))
    if tokens % segments:
        raise InputError("x.shape", x.shape, f"whole segments: tokens a multiple of {segments}")

    def no_kernel(any_device: bool) -> str | None:
        matrix = (shape[0], width)
        return unsupported(tokens // segments, matrix, x.dtype, len(weights), any_device)

    implementation = choose(implementation, None, no_kernel)
    if implementation in ("reference", "xla"):
        return (xla if implementation == "xla" else reference)(x, weights, gate)
    matrices = tuple(w.astype(x.dtype) for w in weights)
    return read(implementation == "pallas_interpret", x, matrices, gate.astype(F32))


def takes_segments(segment_len: int) -> bool:
    """Whether the TPU kernel has blocks for segments of so many tokens."""
    return segment_len % min(segment_len, MOST_TOKENS) == 0 and segment_len % LANES == 0


def unsupported(
    segment_len: int,
    shape: tuple[int, int],
    dtype: jnp.dtype,
    levels: int = 1,
    any_device: bool = False,
) -> str | None:
    """Why the TPU kernel cannot run a read; None if it can.

    Args:
      segment_len: tokens of a segment.
      shape: of one memory, (out, in).
      dtype: type of the inputs.
      levels: how many memories a segment's tokens read.
      any_device: leave out whether a TPU is here.
    """
    if not any_device and not pltpu.is_tpu_device():
        return "the kernel for levels runs on a TPU"
    if dtype not in (jnp.bfloat16, F32):
        return f"the kernel takes bfloat16 and float32, not {dtype}"
    if shape[0] % 16 or shape[1] % 16:
        return f"the kernel takes matrices of multiples of 16, not {shape[0]} x {shape[1]}"
    if not takes_segments(segment_len):
        return (
            f"the kernel for levels takes segments of a multiple of {LANES} tokens, above "
            f"{MOST_TOKENS} of {MOST_TOKENS}, not {segment_len}"
        )
    if vmem_bytes(segment_len, shape, dtype, levels) > vmem_room(this_chip()):
        return f"{levels} levels of {shape[0]} x {shape[1]} do not fit into the chip's VMEM"
    return None
