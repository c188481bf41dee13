"""The read of matrix memories on a GPU: Pallas kernels that lower through Triton.

XLA computes gates, `[memories, tokens]`. What would be large, the reads of all memories by all
tokens, stays in registers: a program takes a block of tokens and goes over the memories that these
see, or takes a memory and goes over the tokens that see it. Tokens lie first, so that a product's
left side, weighted by the gates, need not leave the registers.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mc_jax.kernels.tiles import contract, round_up
from mc_jax.kernels.triton import stages, whole
from mc_jax.typing import Array, Float, Int

F32 = jnp.float32
# Tokens of a block. Eight warps share its product with a matrix of 128 x 128.
TOKENS = 128
PARAMS = plgpu.CompilerParams(num_warps=8, num_stages=3)
# On the way back, where products are summed before they are added up, smaller programs hide each
# other's sums.
TOKENS_BACK = 64
PARAMS_BACK = plgpu.CompilerParams(num_warps=4, num_stages=3)


class Call(NamedTuple):
    """Static facts of one head's read.

    Attributes:
      segment_len: tokens of a segment.
      length: tokens without the padding to whole blocks.
      interpret: run the kernels' steps on any device.
    """

    segment_len: int
    length: int
    interpret: bool


def mix(
    weights: Float[Array, "memories out in"],
    gate: Float[Array, "memories tokens"],
    x: Float[Array, "in tokens"],
    segment_len: int,
    first_segment: Int[Array, ""] | int,
    interpret: bool = False,
) -> Float[Array, "out tokens"]:
    """`sum_i gate_i W_i x` over the memories before each token's segment; in the type of `x`.

    Args:
      weights: matrices; those that no token sees may hold anything.
      gate: weights of their outputs, 0 where a token sees no memory.
      x: inputs.
      segment_len: tokens of a segment.
      first_segment: segment of the first token.
      interpret: run the kernels' steps on any device.
    """
    tokens = x.shape[1]
    pad = [(0, 0), (0, round_up(tokens, TOKENS) - tokens)]
    first = jnp.asarray(first_segment, jnp.int32).reshape(1)
    call = Call(segment_len, tokens, interpret)
    weights, gate = weights.astype(x.dtype), jnp.pad(gate, pad)
    return _mix(call, first, weights, gate, jnp.pad(x, pad).T)[:tokens].T


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(call: Call, first: Array, weights: Array, gate: Array, x: Array) -> Array:
    """Outputs [tokens, out] for inputs [tokens, in]."""
    out = jax.ShapeDtypeStruct((x.shape[0], weights.shape[1]), x.dtype)
    return _by_tokens(_forward, TOKENS, PARAMS, call, first, weights, gate, (x,), out)[0]


def _mix_forward(call: Call, *inputs: Array) -> tuple[Array, Any]:
    return _mix(call, *inputs), inputs


def _mix_backward(call: Call, inputs: Any, dy: Array) -> tuple:
    first, weights, gate, x = inputs
    # As in the forward pass, a product's left side is weighted in registers.
    blocks = _backward, TOKENS_BACK, PARAMS_BACK
    dx, dgate = _by_tokens(*blocks, call, first, weights, gate, (x, dy), x, of_gate=True)
    return None, _weights_gradient(call, first, weights, gate, x, dy), dgate, dx


_mix.defvjp(_mix_forward, _mix_backward)


def _by_tokens(
    kernel: Any,
    size: int,
    params: plgpu.CompilerParams,
    call: Call,
    first: Array,
    weights: Array,
    gate: Array,
    rows: tuple[Array, ...],
    out: Any,
    of_gate: bool = False,
) -> list[Array]:
    """A program for each block of tokens; the last blocks, which see most, come first.

    Args:
      kernel: what a program does.
      size: tokens of a block.
      params: how a program is compiled.
      call: static facts.
      first: segment of the first token [1].
      weights: matrices.
      gate: weights of their outputs [memories, tokens].
      rows: arrays of tokens [tokens, ...].
      out: what the result is like [tokens, ...].
      of_gate: whether the kernel gives gradients of the gates, too.
    """
    memories, tokens = gate.shape
    blocks = tokens // size

    gates = pl.BlockSpec((memories, size), lambda b: (0, blocks - 1 - b))

    def block(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec((size, x.shape[1]), lambda b: (blocks - 1 - b, 0))

    outputs = [out, gate] if of_gate else [out]
    return pl.pallas_call(
        functools.partial(kernel, call, blocks),
        grid=(blocks,),
        in_specs=[whole(first), whole(weights), gates, *map(block, rows)],
        out_specs=[block(out), gates] if of_gate else [block(out)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        compiler_params=params,
        interpret=call.interpret,
        name="linear_read" + kernel.__name__,
    )(first, weights, gate, *rows)


def _seen(call: Call, blocks: int, first: Any, memories: int, tokens: int) -> Array:
    """How many memories, from the first on, some token of a program's block sees."""
    block = blocks - 1 - pl.program_id(0)
    last = jnp.minimum((block + 1) * tokens, call.length) - 1
    return jnp.clip(first[0] + lax.div(last, call.segment_len), 0, memories)


def _forward(call: Call, blocks: int, first: Any, weights: Any, gate: Any, x: Any, y: Any) -> None:
    """`y = sum_i (gate_i x) W_iᵀ`."""
    inputs = x[...]

    def add(i: Array, y: Array) -> Array:
        return y + contract(_weighted(gate[i], inputs), weights[i], (1, 1))

    start = jnp.zeros(y.shape, F32)
    seen = _seen(call, blocks, first, *gate.shape)
    y[...] = lax.fori_loop(0, seen, add, start).astype(y.dtype)


def _weighted(gate: Array, rows: Array) -> Array:
    """Rows times their gates, in the type of the rows."""
    return (gate[:, None] * rows.astype(F32)).astype(rows.dtype)


def _backward(
    call: Call,
    blocks: int,
    first: Any,
    weights: Any,
    gate: Any,
    x: Any,
    dy: Any,
    dx: Any,
    dgate: Any,
) -> None:
    """`z_i = dy W_i`, of which `dgate_i = <x, z_i>` and `dx = sum_i gate_i z_i`."""
    inputs, gradients = x[...], dy[...]
    memories, tokens = gate.shape
    seen = _seen(call, blocks, first, memories, tokens)

    def add(i: Array, total: Array) -> Array:
        z = contract(gradients, weights[i], (1, 0))
        dgate[i] = jnp.sum(z * inputs.astype(F32), 1).astype(dgate.dtype)
        return total + gate[i][:, None] * z

    total = lax.fori_loop(0, seen, add, jnp.zeros(x.shape, F32))
    dx[...] = total.astype(dx.dtype)

    @pl.loop(seen, memories)
    def _(i: Array) -> None:
        dgate[i] = jnp.zeros(tokens, dgate.dtype)


def _weights_gradient(
    call: Call, first: Array, weights: Array, gate: Array, x: Array, dy: Array
) -> Array:
    """`dW_i = sum_t gate_ti dy_t x_tᵀ`: a program for each memory."""
    memories, out, width = weights.shape
    # Tokens of the left side, which is weighted in registers, are last: it is not turned there.
    columns = dy.T
    return pl.pallas_call(
        functools.partial(_gradient, call),
        grid=(memories,),
        in_specs=[
            whole(first),
            pl.BlockSpec((None, gate.shape[1]), lambda i: (i, 0)),
            whole(x),
            whole(columns),
        ],
        out_specs=pl.BlockSpec((None, out, width), lambda i: (i, 0, 0)),
        out_shape=jax.ShapeDtypeStruct(weights.shape, weights.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=stages()),
        interpret=call.interpret,
        name="linear_read_gradient",
    )(first, gate, x, columns)


def _gradient(call: Call, first: Any, gate: Any, x: Any, dy: Any, dw: Any) -> None:
    tokens = x.shape[0]
    start = (pl.program_id(0) + 1 - first[0]) * call.segment_len
    begin = jnp.clip(lax.div(start, TOKENS), 0, tokens // TOKENS)

    def add(block: Array, dw: Array) -> Array:
        rows = pl.ds(block * TOKENS, TOKENS)
        weighted = gate[rows][None, :] * dy[:, rows].astype(F32)
        return dw + contract(weighted.astype(dy.dtype), x[rows, :], (1, 0))

    total = lax.fori_loop(begin, tokens // TOKENS, add, jnp.zeros(dw.shape, F32))
    dw[...] = total.astype(dw.dtype)
