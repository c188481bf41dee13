"""Selecting the best memories of each token on a GPU: Pallas kernels that lower through Triton.

Logits stay in registers: XLA would write those of all memories, and sort them. A program takes a
block of tokens and goes over blocks of memories, of which it keeps each token's best so far.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mc_jax.kernels.gates import Router
from mc_jax.kernels.remat import keep
from mc_jax.kernels.tiles import contract, round_up
from mc_jax.kernels.triton import whole
from mc_jax.typing import Array, Float, Int

F32 = jnp.float32
TOKENS, MEMORIES = 128, 64
# Runs of tokens that add up descriptors' gradients side by side.
RUNS = 32
PARAMS = plgpu.CompilerParams(num_warps=8, num_stages=2)


class Call(NamedTuple):
    """Static facts of one head's routing.

    Attributes:
      segment_len: tokens of a segment.
      memories: how many there are.
      top_k: how many a token reads.
      interpret: run the kernels' steps on any device.
    """

    segment_len: int
    memories: int
    top_k: int
    interpret: bool


def select_memories(
    router: Router,
    segment_len: int,
    first_segment: Int[Array, ""] | int,
    top_k: int,
    interpret: bool = False,
) -> tuple[Float[Array, " tokens"], Float[Array, "top_k tokens"], Int[Array, "top_k tokens"]]:
    """As `selected_gates`, over the memories before each token's segment.

    Args:
      router: what memories are scored with; u is read in bfloat16, which for `gate="context"` is
        what it was made in.
      segment_len: tokens of a segment.
      first_segment: segment of the first token.
      top_k: cached memories that a token reads.
      interpret: run the kernels' steps on any device.
    """
    memories, tokens = router.descriptors.shape[0], router.u.shape[1]
    call = Call(segment_len, memories, top_k, interpret)
    rows = [(0, round_up(tokens, TOKENS) - tokens), (0, 0)]
    first = jnp.asarray(first_segment, jnp.int32).reshape(1)
    u = jnp.pad(router.u.T.astype(jnp.bfloat16), rows)
    descriptors = jnp.pad(router.descriptors, [(0, -memories % MEMORIES), (0, 0)])
    online = jnp.pad(router.online.astype(F32), rows[0])
    gates, memory = _select(call, first, u, online, descriptors)
    return gates[0, :tokens], gates[1:, :tokens], memory[:, :tokens]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _select(
    call: Call, first: Array, u: Array, online: Array, descriptors: Array
) -> tuple[Array, Array]:
    """Gates [1 + top_k, tokens], the online memory's first, and the memories [top_k, tokens]."""
    tokens = online.shape[0]
    gates = jax.ShapeDtypeStruct((1 + call.top_k, tokens), F32)
    memory = jax.ShapeDtypeStruct((call.top_k, tokens), jnp.int32)
    high, low = _halves(descriptors)
    return tuple(
        pl.pallas_call(
            functools.partial(_forward, call),
            grid=(tokens // TOKENS,),
            in_specs=[whole(first), _rows(u), _line(), whole(high), whole(low)],
            out_specs=[_columns(gates), _columns(memory)],
            out_shape=[gates, memory],
            compiler_params=PARAMS,
            interpret=call.interpret,
            name="select_memories",
        )(first, u, online, high, low)
    )


def _halves(x: Array) -> tuple[Array, Array]:
    """Two bfloat16 arrays whose sum is `x` to 16 bits."""
    high = x.astype(jnp.bfloat16)
    return high, (x - high.astype(x.dtype)).astype(jnp.bfloat16)


def _select_forward(call: Call, first: Array, u: Array, online: Array, descriptors: Array) -> Any:
    gates, memory = keep(*_select(call, first, u, online, descriptors))
    return (gates, memory), (u, descriptors, gates, memory)


def _select_backward(call: Call, residuals: Any, cotangents: Any) -> tuple:
    u, descriptors, gates, memory = residuals
    dgates = cotangents[0]
    # The way back through the softmax.
    dlogits = gates * (dgates - jnp.sum(gates * dgates, 0))
    du, ddescriptors = _logits_gradient(call, u, descriptors, dlogits[1:], memory)
    return None, du, dlogits[0], ddescriptors


_select.defvjp(_select_forward, _select_backward)


def _logits_gradient(
    call: Call, u: Array, descriptors: Array, dlogits: Array, memory: Array
) -> tuple[Array, Array]:
    """Gradients of u and of descriptors."""
    tokens, blocks = u.shape[0], descriptors.shape[0] // MEMORIES
    du = pl.pallas_call(
        _queries_gradient,
        grid=(tokens // TOKENS,),
        in_specs=[_columns(dlogits), _columns(memory), whole(descriptors)],
        out_specs=_rows(u),
        out_shape=jax.ShapeDtypeStruct(u.shape, u.dtype),
        compiler_params=PARAMS,
        interpret=call.interpret,
        name="select_memories_queries_gradient",
    )(dlogits, memory, descriptors.astype(u.dtype))
    runs = min(RUNS, tokens // TOKENS)
    parts = pl.pallas_call(
        functools.partial(_descriptors_gradient, runs),
        grid=(blocks, runs),
        in_specs=[whole(dlogits), whole(memory), whole(u)],
        out_specs=pl.BlockSpec((None, MEMORIES, u.shape[1]), lambda b, r: (r, b, 0)),
        out_shape=jax.ShapeDtypeStruct((runs, *descriptors.shape), F32),
        compiler_params=PARAMS,
        interpret=call.interpret,
        name="select_memories_descriptors_gradient",
    )(dlogits, memory, u)
    return du, jnp.sum(parts, 0).astype(descriptors.dtype)


def _rows(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec((TOKENS, x.shape[1]), lambda b: (b, 0))


def _line() -> pl.BlockSpec:
    return pl.BlockSpec((TOKENS,), lambda b: (b,))


def _columns(x: Any) -> pl.BlockSpec:
    return pl.BlockSpec((x.shape[0], TOKENS), lambda b: (0, b))


def _forward(
    call: Call,
    first: Any,
    u: Any,
    online: Any,
    high: Any,
    low: Any,
    gates: Any,
    memory: Any,
) -> None:
    queries = u[...]
    token = pl.program_id(0) * TOKENS + lax.broadcasted_iota(jnp.int32, (TOKENS,), 0)
    seen = jnp.clip(first[0] + lax.div(token, call.segment_len), 0, call.memories)
    column = lax.broadcasted_iota(jnp.int32, (TOKENS, MEMORIES), 1)

    def block(b: Array, best: tuple) -> tuple:
        rows = pl.ds(b * MEMORIES, MEMORIES)
        logits = contract(queries, high[rows, :], (1, 1)) + contract(queries, low[rows, :], (1, 1))
        # One that is not a number is selected, and shows in the softmax.
        logits = jnp.where(jnp.isnan(logits), jnp.inf, logits)
        logits = jnp.where(b * MEMORIES + column < seen[:, None], logits, -jnp.inf)
        for _ in range(call.top_k):
            top = jnp.max(logits, 1)
            at = jnp.min(jnp.where(logits == top[:, None], column, MEMORIES), 1)
            logits = jnp.where(column == at[:, None], -jnp.inf, logits)
            best = _insert(best, top, b * MEMORIES + at)
        return best

    none = (jnp.full((TOKENS,), -jnp.inf, F32), jnp.full((TOKENS,), call.memories, jnp.int32))
    best = lax.fori_loop(0, pl.cdiv(jnp.max(seen), MEMORIES), block, (none,) * call.top_k)
    logits = [online[...], *(logit for logit, _ in best)]
    highest = functools.reduce(jnp.maximum, logits)
    weights = [jnp.exp(logit - highest) for logit in logits]
    total = sum(weights)
    for i, weight in enumerate(weights):
        gates[i] = weight / total
    for i, (_, which) in enumerate(best):
        memory[i] = which


def _insert(best: tuple, logit: Array, which: Array) -> tuple:
    """A list of each token's best memories with one more; of equal ones the older comes first."""
    kept = []
    for other, index in best:
        better = logit > other
        kept.append((jnp.where(better, logit, other), jnp.where(better, which, index)))
        logit, which = jnp.where(better, other, logit), jnp.where(better, index, which)
    return tuple(kept)


def _dense(dlogits: Any, memory: Any, columns: pl.Slice, start: Array) -> Array:
    """Gradients of the logits of a block of memories, mostly zeros [tokens, memories]."""
    column = start + lax.broadcasted_iota(jnp.int32, (TOKENS, MEMORIES), 1)
    total = jnp.zeros((TOKENS, MEMORIES), F32)
    for i in range(dlogits.shape[0]):
        mine = memory[i, columns][:, None] == column
        total += jnp.where(mine, dlogits[i, columns][:, None], 0)
    return total.astype(jnp.bfloat16)


def _queries_gradient(dlogits: Any, memory: Any, descriptors: Any, du: Any) -> None:
    """`du = sum_j dlogit_j descriptor_{memory_j}`; the table is small enough to gather from."""
    last = descriptors.shape[0] - 1
    total = jnp.zeros(du.shape, F32)
    for i in range(dlogits.shape[0]):
        gradient, which = dlogits[i, :], memory[i, :]
        rows = descriptors[jnp.minimum(which, last), :].astype(F32)
        # What a token does not read may hold anything.
        total += jnp.where((gradient != 0)[:, None], gradient[:, None] * rows, 0)
    du[...] = total.astype(du.dtype)


def _descriptors_gradient(runs: int, dlogits: Any, memory: Any, u: Any, part: Any) -> None:
    start, run = pl.program_id(0) * MEMORIES, pl.program_id(1)
    blocks = u.shape[0] // TOKENS

    def add(i: Array, total: Array) -> Array:
        rows = pl.ds((run + i * runs) * TOKENS, TOKENS)
        return total + contract(_dense(dlogits, memory, rows, start), u[rows, :], (0, 0))

    mine = pl.cdiv(blocks - run, runs)
    part[...] = lax.fori_loop(0, mine, add, jnp.zeros(part.shape, F32))
