"""The read of few among many matrix memories on a GPU: Pallas kernels that lower through Triton.

Each token reads `top_k` memories, one read a pair of token and memory. XLA sorts pairs by memory; a
program takes some of those of one memory, and the rows of their tokens, wherever they lie. Memories
that many tokens select have many programs.
"""

import functools
from typing import Any, NamedTuple

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
# Pairs of a block, and of a program at most.
PAIRS, MOST_PAIRS = 64, 512
# Gathering waits for memory: of small programs several run beside each other.
PARAMS = plgpu.CompilerParams(num_warps=4, num_stages=2)
PARAMS_BACK = plgpu.CompilerParams(num_warps=8, num_stages=2)


class Shares(NamedTuple):
    """What each program reads: pairs of one memory, so many at most that all take a similar time.

    Attributes:
      memory: whose pairs they are.
      begin: the first of them, in the order of memories.
      end: the one after the last; `begin` for a program that is not needed.
      first: of each memory its first program, and the number of all that are needed.
    """

    memory: Int[Array, " programs"]
    begin: Int[Array, " programs"]
    end: Int[Array, " programs"]
    first: Int[Array, " memories_and_one"]


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
    shares = _shares(jnp.sum(before, 1, dtype=jnp.int32), pairs.shape[0])
    # The last block of a memory may reach beyond its pairs.
    *kept, pair = keep(*shares, jnp.pad(pair, (0, PAIRS)))
    read = pairs < weights.shape[0]
    return _mix(interpret, Shares(*kept), pair, read, weights.astype(x.dtype), gate, x.T).T


def _shares(bounds: Int[Array, " memories_and_one"], pairs: int) -> Shares:
    """Programs for all pairs, of which those of memory i are `bounds[i]` to `bounds[i + 1]`."""
    memories = bounds.shape[0] - 1
    programs = (bounds[1:] - bounds[:-1] + MOST_PAIRS - 1) // MOST_PAIRS
    after = jnp.cumsum(programs)
    program = jnp.arange(pairs // MOST_PAIRS + memories, dtype=jnp.int32)
    memory = jnp.sum(program[:, None] >= after, 1, dtype=jnp.int32)
    needed, memory = memory < memories, jnp.minimum(memory, memories - 1)
    begin = bounds[memory] + (program - (after - programs)[memory]) * MOST_PAIRS
    end = jnp.minimum(begin + MOST_PAIRS, bounds[memory + 1])
    first = jnp.pad(after, (1, 0))
    return Shares(memory, begin, jnp.where(needed, end, begin), first.astype(jnp.int32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(
    interpret: bool,
    shares: Shares,
    pair: Array,
    read: Array,
    weights: Array,
    gate: Array,
    x: Array,
) -> Array:
    """Outputs [tokens, out].

    Args:
      interpret: run the kernels' steps on any device.
      shares: which pairs each program reads.
      pair: sorted by memory; number j * tokens + t is token t's j-th [pairs + PAIRS].
      read: whether a pair reads anything [pairs].
      weights: matrices.
      gate: weights of their outputs [top_k, tokens].
      x: inputs [tokens, in].
    """
    rows = jax.ShapeDtypeStruct((gate.size + 1, weights.shape[1]), x.dtype)
    inputs = (interpret, shares, pair, weights, gate, (x,))
    (y,) = _by_share(_forward, PARAMS, *inputs, (rows,))
    return _over_pairs(y, read, x)


def _mix_forward(interpret: bool, *inputs: Any) -> tuple[Array, Any]:
    return _mix(interpret, *inputs), inputs


def _mix_backward(interpret: bool, inputs: Any, dy: Array) -> tuple:
    shares, pair, read, weights, gate, x = inputs
    programs = shares.memory.shape[0]
    # The last row is where a block puts what is not of its memory.
    rows = jax.ShapeDtypeStruct((gate.size + 1, x.shape[1]), x.dtype)
    line = jax.ShapeDtypeStruct((gate.size + 1,), F32)
    part = jax.ShapeDtypeStruct((programs, *weights.shape[1:]), x.dtype)
    arrays = (interpret, shares, pair, weights, gate, (x, dy))
    dx, dgate, parts = _by_share(_backward, PARAMS_BACK, *arrays, (rows, line, part))
    dweights = _sum_by_memory(interpret, shares.first, parts, weights.dtype)
    dgate = jnp.where(read, dgate[:-1], 0).reshape(gate.shape).astype(gate.dtype)
    return None, None, None, dweights, dgate, _over_pairs(dx, read, x)


_mix.defvjp(_mix_forward, _mix_backward)


def _over_pairs(rows: Array, read: Array, like: Array) -> Array:
    """The sum of each token's rows; those of pairs that read nothing were not written."""
    rows = jnp.where(read[:, None], rows[:-1].astype(F32), 0).reshape(
        -1, like.shape[0], rows.shape[1]
    )
    return jnp.sum(rows, 0).astype(like.dtype)


def _by_share(
    kernel: Any,
    params: plgpu.CompilerParams,
    interpret: bool,
    shares: Shares,
    pair: Array,
    weights: Array,
    gate: Array,
    rows: tuple[Array, ...],
    outputs: tuple[Any, ...],
) -> list[Array]:
    """A program for each share; outputs of three axes have one part a program."""

    def out(x: Any) -> pl.BlockSpec:
        if x.ndim == 3:
            return pl.BlockSpec((None, *x.shape[1:]), lambda p: (p, 0, 0))
        return whole(x)

    programs = (shares.memory, shares.begin, shares.end)
    inputs = (*programs, pair, gate.reshape(-1), weights, *rows)
    return pl.pallas_call(
        kernel,
        grid=shares.memory.shape,
        in_specs=[*map(whole, inputs)],
        out_specs=[*map(out, outputs)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        compiler_params=params,
        interpret=interpret,
        name="linear_read_selected" + kernel.__name__,
    )(*inputs)


def _sum_by_memory(interpret: bool, first: Array, parts: Array, dtype: jnp.dtype) -> Array:
    """Sums of the parts of each memory's programs."""
    total = jax.ShapeDtypeStruct((first.shape[0] - 1, *parts.shape[1:]), dtype)
    return pl.pallas_call(
        _sum_parts,
        grid=total.shape[:1],
        in_specs=[whole(first), whole(parts)],
        out_specs=pl.BlockSpec((None, *total.shape[1:]), lambda m: (m, 0, 0)),
        out_shape=total,
        compiler_params=PARAMS_BACK,
        interpret=interpret,
        name="linear_read_selected_sum",
    )(first, parts)


def _each_block(
    begin: Array, end: Array, pair: Any, gate: Any, tokens: int, add: Any, start: Any
) -> Any:
    """Go over the blocks of a program's pairs: `add(target row, token, gate, carry)`."""

    def pairs_of(b: Array) -> Array:
        return pair[pl.ds(jnp.minimum(begin + b * PAIRS, pair.shape[0] - PAIRS), PAIRS)]

    def gates_of(b: Array, pairs: Array) -> tuple[Array, Array]:
        there = begin + b * PAIRS + lax.broadcasted_iota(jnp.int32, (PAIRS,), 0) < end
        return jnp.where(there, pairs, gate.shape[0]), jnp.where(there, gate[pairs], 0)

    def block(b: Array, carry: Any) -> Any:
        # What the next block starts from is fetched while this one is worked on.
        total, pairs, target, gates = carry
        after = pairs_of(b + 1)
        total = add(target, lax.rem(pairs, tokens), gates, total)
        return total, after, *gates_of(b + 1, after)

    zero = jnp.int32(0)
    pairs = pairs_of(zero)
    first = (start, pairs, *gates_of(zero, pairs))
    return lax.fori_loop(0, pl.cdiv(end - begin, PAIRS), block, first)[0]


def _forward(
    memory: Any, begin: Any, end: Any, pair: Any, gate: Any, weights: Any, x: Any, y: Any
) -> None:
    """`y = gate W x`."""
    mine = pl.program_id(0)
    matrix = weights[memory[mine]]

    def add(target: Array, token: Array, gate: Array, carry: None) -> None:
        y[target, :] = (gate[:, None] * contract(x[token, :], matrix, (1, 1))).astype(y.dtype)

    _each_block(begin[mine], end[mine], pair, gate, x.shape[0], add, None)


def _backward(
    memory: Any,
    begin: Any,
    end: Any,
    pair: Any,
    gate: Any,
    weights: Any,
    x: Any,
    dy: Any,
    dx: Any,
    dgate: Any,
    dweights: Any,
) -> None:
    """With `z = dy W`: `dgate = <x, z>`, `dx = gate z` and a part of `dW = sum gate dy xᵀ`."""
    mine = pl.program_id(0)
    matrix = weights[memory[mine]]

    def add(target: Array, token: Array, gate: Array, total: Array) -> Array:
        gradients, inputs = dy[token, :], x[token, :]
        z = contract(gradients, matrix, (1, 0))
        dgate[target] = jnp.sum(z * inputs.astype(F32), 1)
        dx[target, :] = (gate[:, None] * z).astype(dx.dtype)
        weighted = (gate[:, None] * gradients.astype(F32)).astype(dy.dtype)
        return total + contract(weighted, inputs, (0, 0))

    start = jnp.zeros(dweights.shape, F32)
    total = _each_block(begin[mine], end[mine], pair, gate, x.shape[0], add, start)
    dweights[...] = total.astype(dweights.dtype)


def _sum_parts(first: Any, parts: Any, total: Any) -> None:
    mine = pl.program_id(0)

    def add(program: Array, total: Array) -> Array:
        return total + parts[program].astype(F32)

    start = jnp.zeros(total.shape, F32)
    total[...] = lax.fori_loop(first[mine], first[mine + 1], add, start).astype(total.dtype)
