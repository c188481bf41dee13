"""The read of few among many matrix memories on a GPU: Pallas kernels that lower through Triton.

Each token reads `top_k` memories, one read a pair of token and memory. XLA sorts pairs by memory; a
program takes a memory and the rows of the tokens that read it, wherever they lie.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mc_jax.kernels.remat import keep
from mc_jax.kernels.tiles import contract
from mc_jax.kernels.triton import whole
from mc_jax.typing import Array, Float, Int

F32 = jnp.float32
# Pairs of a block, and programs that share those of a memory.
PAIRS, PROGRAMS = 64, 4


def mix_selected(
    weights: Float[Array, "memories out in"],
    gate: Float[Array, "top_k tokens"],
    memory: Int[Array, "top_k tokens"],
    x: Float[Array, "in tokens"],
    interpret: bool = False,
) -> Float[Array, "out tokens"]:
    """`sum_j gate_j W_{memory_j} x` over the memories that each token has selected.

    Args:
      weights: matrices; those that no token reads may hold anything.
      gate: weights of their outputs.
      memory: which are read; `memories` for none.
      x: inputs.
      interpret: run the kernels' steps on any device.
    """
    pairs = memory.reshape(-1)
    _, pair = lax.sort((pairs, jnp.arange(pairs.shape[0], dtype=jnp.int32)), num_keys=1)
    before = pairs < jnp.arange(weights.shape[0] + 1)[:, None]
    bounds = jnp.sum(before, 1, dtype=jnp.int32)
    # The last block of a memory may reach beyond its pairs.
    bounds, pair = keep(bounds, jnp.pad(pair, (0, PAIRS)))
    read = pairs < weights.shape[0]
    return _mix(interpret, bounds, pair, read, weights.astype(x.dtype), gate, x.T).T


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(
    interpret: bool,
    bounds: Array,
    pair: Array,
    read: Array,
    weights: Array,
    gate: Array,
    x: Array,
) -> Array:
    """Outputs [tokens, out].

    Args:
      interpret: run the kernels' steps on any device.
      bounds: where each memory's pairs start, and the last one's end [memories + 1].
      pair: sorted by memory; number j * tokens + t is token t's j-th [pairs + PAIRS].
      read: whether a pair reads anything [pairs].
      weights: matrices.
      gate: weights of their outputs [top_k, tokens].
      x: inputs [tokens, in].
    """
    rows = jax.ShapeDtypeStruct((gate.size + 1, weights.shape[1]), x.dtype)
    call = (interpret, PROGRAMS, bounds, pair, weights, gate.reshape(-1))
    return _over_pairs(_by_memory(_forward, *call, (x,), (rows,))[0], read, x)


def _mix_forward(interpret: bool, *inputs: Array) -> tuple[Array, Any]:
    return _mix(interpret, *inputs), inputs


def _mix_backward(interpret: bool, inputs: Any, dy: Array) -> tuple:
    bounds, pair, read, weights, gate, x = inputs
    # The last row is where a block puts what is not of its memory.
    rows = jax.ShapeDtypeStruct((gate.size + 1, x.shape[1]), x.dtype)
    line = jax.ShapeDtypeStruct((gate.size + 1,), F32)
    arrays = (bounds, pair, weights, gate.reshape(-1), (x, dy))
    dx, dgate = _by_memory(_backward, interpret, PROGRAMS, *arrays, (rows, line))
    (dweights,) = _by_memory(_gradient, interpret, 1, *arrays, (weights,))
    dgate = jnp.where(read, dgate[:-1], 0).reshape(gate.shape).astype(gate.dtype)
    return None, None, None, dweights, dgate, _over_pairs(dx, read, x)


_mix.defvjp(_mix_forward, _mix_backward)


def _over_pairs(rows: Array, read: Array, like: Array) -> Array:
    """The sum of each token's rows; those of pairs that read nothing were not written."""
    rows = jnp.where(read[:, None], rows[:-1].astype(F32), 0).reshape(
        -1, like.shape[0], rows.shape[1]
    )
    return jnp.sum(rows, 0).astype(like.dtype)


def _by_memory(
    kernel: Any,
    interpret: bool,
    programs: int,
    bounds: Array,
    pair: Array,
    weights: Array,
    gate: Array,
    rows: tuple[Array, ...],
    outputs: tuple[Any, ...],
) -> list[Array]:
    """Programs for each memory, which share its pairs; outputs like `weights` are by memory."""

    def one(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec((None, *x.shape[1:]), lambda i, _: (i, 0, 0))

    inputs = (bounds, pair, gate, *rows)
    return pl.pallas_call(
        functools.partial(kernel, programs),
        grid=(weights.shape[0], programs),
        in_specs=[*map(whole, inputs), one(weights)],
        out_specs=[one(x) if x.shape == weights.shape else whole(x) for x in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        # Gathering waits for memory: of small programs several run beside each other.
        compiler_params=plgpu.CompilerParams(num_warps=4 if programs > 1 else 8, num_stages=2),
        interpret=interpret,
        name="linear_read_selected" + kernel.__name__,
    )(*inputs, weights)


def _each_block(
    programs: int, bounds: Any, pair: Any, gate: Any, tokens: int, add: Any, start: Any
) -> Any:
    """Go over the blocks of the program's pairs: `add(target row, token, gate, carry)`."""
    i, mine = pl.program_id(0), pl.program_id(1)
    begin, end = bounds[i], bounds[i + 1]
    blocks = pl.cdiv(end - begin, PAIRS)

    def block(b: Array, carry: Any) -> Any:
        at = begin + (mine + b * programs) * PAIRS
        there = at + lax.broadcasted_iota(jnp.int32, (PAIRS,), 0) < end
        pairs = pair[pl.ds(at, PAIRS)]
        target = jnp.where(there, pairs, gate.shape[0])
        return add(target, lax.rem(pairs, tokens), jnp.where(there, gate[pairs], 0), carry)

    return lax.fori_loop(0, pl.cdiv(blocks - mine, programs), block, start)


def _forward(
    programs: int, bounds: Any, pair: Any, gate: Any, x: Any, weights: Any, y: Any
) -> None:
    """`y = gate W x`."""
    matrix = weights[...]

    def add(target: Array, token: Array, gate: Array, carry: None) -> None:
        y[target, :] = (gate[:, None] * contract(x[token, :], matrix, (1, 1))).astype(y.dtype)

    _each_block(programs, bounds, pair, gate, x.shape[0], add, None)


def _backward(
    programs: int,
    bounds: Any,
    pair: Any,
    gate: Any,
    x: Any,
    dy: Any,
    weights: Any,
    dx: Any,
    dgate: Any,
) -> None:
    """With `z = dy W`: `dgate = <x, z>` and `dx = gate z`."""
    matrix = weights[...]

    def add(target: Array, token: Array, gate: Array, carry: None) -> None:
        z = contract(dy[token, :], matrix, (1, 0))
        dgate[target] = jnp.sum(z * x[token, :].astype(F32), 1)
        dx[target, :] = (gate[:, None] * z).astype(dx.dtype)

    _each_block(programs, bounds, pair, gate, x.shape[0], add, None)


def _gradient(
    programs: int,
    bounds: Any,
    pair: Any,
    gate: Any,
    x: Any,
    dy: Any,
    weights: Any,
    dweights: Any,
) -> None:
    """`dW = sum gate dy xᵀ`."""

    def add(target: Array, token: Array, gate: Array, total: Array) -> Array:
        weighted = gate[:, None] * dy[token, :].astype(F32)
        return total + contract(weighted.astype(dy.dtype), x[token, :], (0, 0))

    start = jnp.zeros(dweights.shape, F32)
    total = _each_block(programs, bounds, pair, gate, x.shape[0], add, start)
    dweights[...] = total.astype(dweights.dtype)
