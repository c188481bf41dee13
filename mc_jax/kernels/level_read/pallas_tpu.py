"""The kernels that read a matrix from each level on a TPU, and all gradients of that.

Tokens lie in the lanes. A step takes tokens of one segment, and all levels go into one product:
their matrices side by side, and the inputs, weighted by each level's gates, below each other.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import this_chip, vmem_limit
from mc_jax.kernels.tiles import LANES, contract, round_up
from mc_jax.typing import Array, Float

F32 = jnp.float32
# Tokens of a step.
MOST_TOKENS = 512


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def read(
    interpret: bool,
    x: Float[Array, "in tokens"],
    weights: tuple[Float[Array, "segments out in"], ...],
    gate: Float[Array, "levels tokens"],
) -> Float[Array, "out tokens"]:
    """See `level_read`.

    Args:
      interpret: run the kernel's steps on any device.
      x: inputs.
      weights: of each level, typed as x.
      gate: float32.
    """
    out = weights[0].shape[1]
    blocks = _Blocks(x, weights)
    return blocks.run(
        *(_forward_kernel, interpret),
        in_specs=[(blocks.tokens(x.shape[0]), blocks.matrices, blocks.tokens(len(weights)))],
        out_shape=jax.ShapeDtypeStruct((out, x.shape[1]), F32),
        out_specs=blocks.tokens(out),
        name="level_read_forward",
    )((x, weights, gate))


def _read_forward(interpret: bool, *inputs: Any) -> tuple[Array, Any]:
    return read(interpret, *inputs), inputs


def _read_backward(interpret: bool, inputs: Any, dy: Array) -> tuple:
    x, weights, gate = inputs
    out = weights[0].shape[1]
    blocks = _Blocks(x, weights)
    specs = (blocks.tokens(x.shape[0]), blocks.matrices, blocks.tokens(len(weights)))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), inputs)
    return blocks.run(
        *(_backward_kernel, interpret),
        in_specs=[(*specs, blocks.tokens(out))],
        out_shape=(shapes,),
        out_specs=(specs,),
        scratch_shapes=[pltpu.VMEM((len(weights) * out, x.shape[0]), F32)],
        name="level_read_backward",
    )((*inputs, dy))[0]


read.defvjp(_read_forward, _read_backward)


class _Blocks:
    """How a call is cut: grid (segments, parts of a segment)."""

    def __init__(self, x: Array, weights: tuple[Array, ...]) -> None:
        """From the call's arrays."""
        self.segments = weights[0].shape[0]
        segment_len = x.shape[1] // self.segments
        self.size = min(segment_len, MOST_TOKENS)
        self.parts = segment_len // self.size
        self.matrices = tuple(
            pl.BlockSpec((None, *w.shape[1:]), lambda s, i: (s, 0, 0)) for w in weights
        )

    def tokens(self, rows: int) -> pl.BlockSpec:
        """Blocks of an array with so many rows."""
        return pl.BlockSpec((rows, self.size), lambda s, i: (0, s * self.parts + i))

    def run(self, kernel: Any, interpret: bool, **options: Any) -> Any:
        """The `pl.pallas_call`."""
        return pl.pallas_call(
            kernel,
            grid=(self.segments, self.parts),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"),
                vmem_limit_bytes=vmem_limit(this_chip()),
            ),
            interpret=interpret,
            **options,
        )


def vmem_bytes(segment_len: int, shape: tuple[int, int], dtype: Any, levels: int) -> int:
    """VMEM of the backward kernel: matrices and their gradients twice, and a step's values."""
    (out, width), size = shape, min(segment_len, MOST_TOKENS)
    narrow = jnp.dtype(dtype).itemsize
    matrices = levels * out * round_up(width, LANES) * (4 * narrow + narrow + 4)
    tokens = size * (levels * out * (4 + 4 + narrow) + 2 * (2 * narrow * width + 4 * out))
    return matrices + tokens


def _weighted(gate: Any, x: Array) -> Array:
    """x weighted by each level's gates, below each other, in float32."""
    return jnp.concatenate([gate[i : i + 1] * x for i in range(gate.shape[0])])


def _forward_kernel(inputs: Any, y_ref: Any) -> None:
    x_ref, weights, gate_ref = inputs
    side_by_side = jnp.concatenate([w[...] for w in weights], 1)
    x = x_ref[...]
    weighted = _weighted(gate_ref[...], x.astype(F32)).astype(x.dtype)
    y_ref[...] = contract(side_by_side, weighted, (1, 0))


def _backward_kernel(inputs: Any, outputs: Any, dweights: Any) -> None:
    x_ref, weights, gate_ref, dy_ref = inputs
    dx_ref, dweights_refs, dgate_ref = outputs
    part = pl.program_id(1)
    x, dy = x_ref[...], dy_ref[...]
    out, dtype = dy.shape[0], x.dtype
    stacked = jnp.concatenate([w[...] for w in weights])
    weighted = _weighted(gate_ref[...], dy).astype(dtype)
    dx_ref[...] = contract(stacked, weighted, (0, 0)).astype(dx_ref.dtype)
    # What each level alone gives, against which way the outputs want to go.
    each = contract(stacked, x, (1, 0))
    rows = [each[i * out : (i + 1) * out] for i in range(len(weights))]
    dgate_ref[...] = jnp.concatenate([jnp.sum(row * dy, 0, keepdims=True) for row in rows])

    @pl.when(part == 0)
    def _() -> None:
        dweights[...] = jnp.zeros_like(dweights)

    dweights[...] += contract(weighted, x, (1, 1))

    @pl.when(part == pl.num_programs(1) - 1)
    def _() -> None:
        for i, ref in enumerate(dweights_refs):
            ref[...] = dweights[i * out : (i + 1) * out].astype(ref.dtype)
