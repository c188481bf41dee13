"""The read of the online matrix memory on a GPU: Pallas kernels that lower through Triton.

Inside a chunk that starts with the state S, with A_t the product of its gates up to token t,

    y_t = A_t S q_t + sum_{j <= t} (A_t / A_j) v_j <k_j, q_t>

XLA would write the products of all pairs of a chunk's tokens; here they stay in registers. A
program takes a block of tokens, and goes over those of its chunk before it (its queries) or after
it (its keys).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mc_jax.kernels.tiles import contract
from mc_jax.kernels.triton import no_triton
from mc_jax.typing import Array, Float

F32 = jnp.float32
# The most tokens of a block; small programs, of which several run beside each other, are faster.
TOKENS = 64
PARAMS = plgpu.CompilerParams(num_warps=4, num_stages=2)


class Call(NamedTuple):
    """Static facts of one head's read.

    Attributes:
      chunk_len: tokens of a chunk.
      block: tokens of a program.
      interpret: run the kernels' steps on any device.
    """

    chunk_len: int
    block: int
    interpret: bool


def chunk_read(
    q: Float[Array, "tokens head_dim"],
    k: Float[Array, "tokens head_dim"],
    v: Float[Array, "tokens head_dim"],
    log_decay: Float[Array, " tokens"],
    states: Float[Array, "chunks head_dim head_dim"],
    interpret: bool = False,
) -> Float[Array, "tokens head_dim"]:
    """What each token reads of the running memory, for one head; in the type of `q`.

    Args:
      q: queries, whole chunks of them.
      k: keys.
      v: values.
      log_decay: log A_t, from each chunk's start.
      states: memory at the start of each chunk.
      interpret: run the kernels' steps on any device.
    """
    chunk_len = q.shape[0] // states.shape[0]
    call = Call(chunk_len, min(chunk_len, TOKENS), interpret)
    return _read(call, q, k, v, log_decay, states.astype(q.dtype))


def unsupported(chunk_len: int, head_dim: int, dtype: jnp.dtype) -> str | None:
    """Why the kernel cannot run on a GPU; None if it can."""
    reason = no_triton(dtype, head_dim)
    if reason:
        return reason
    if chunk_len not in (16, 32) and chunk_len % TOKENS:
        return f"on a GPU the kernel takes chunks of 16, 32 or n times {TOKENS}, not {chunk_len}"
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read(call: Call, q: Array, k: Array, v: Array, log_decay: Array, states: Array) -> Array:
    return by_block(_forward, call, (q,), (k, v, log_decay), states, (q,))[0]


def _read_forward(call: Call, *inputs: Array) -> tuple[Array, Any]:
    return _read(call, *inputs), inputs


def _read_backward(call: Call, inputs: Any, dy: Array) -> tuple[Array, ...]:
    q, k, v, log_decay, states = inputs
    dq, up = by_block(_queries, call, (q, dy), (k, v, log_decay), states, (q, log_decay))
    dk, dv, down = by_block(_keys, call, (k, v), (q, dy, log_decay), None, (k, v, log_decay))
    weighted = (dy * jnp.exp(log_decay)[:, None]).astype(q.dtype)
    dstates = jnp.einsum(
        "cto,cti->coi",
        *(x.reshape(-1, call.chunk_len, x.shape[1]) for x in (weighted, q)),
        preferred_element_type=F32,
    )
    return dq, dk, dv, up - down, dstates.astype(states.dtype)


_read.defvjp(_read_forward, _read_backward)


def by_block(
    kernel: Any,
    call: Call,
    own: tuple[Array, ...],
    chunk: tuple[Array, ...],
    states: Array | None,
    outputs: tuple[Array, ...],
) -> list[Array]:
    """A program for each block of tokens.

    Args:
      kernel: what a program does.
      call: static facts.
      own: arrays of which it reads its own tokens.
      chunk: arrays of which it reads all of its chunk's.
      states: of which it reads its chunk's; None for none.
      outputs: arrays shaped as those of which it writes its own tokens.
    """
    blocks = call.chunk_len // call.block

    def tokens(x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((call.block, *x.shape[1:]), lambda c, b: (c * blocks + b, 0)[: x.ndim])

    def whole(x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((call.chunk_len, *x.shape[1:]), lambda c, b: (c, 0)[: x.ndim])

    specs = [*map(tokens, own), *map(whole, chunk)]
    inputs = [*own, *chunk]
    if states is not None:
        specs.append(pl.BlockSpec((None, *states.shape[1:]), lambda c, b: (c, 0, 0)))
        inputs.append(states)
    return pl.pallas_call(
        functools.partial(kernel, call.block),
        grid=(outputs[0].shape[0] // call.chunk_len, blocks),
        in_specs=specs,
        out_specs=[tokens(x) for x in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        compiler_params=PARAMS,
        interpret=call.interpret,
        name="chunk_read" + kernel.__name__,
    )(*inputs)


def causal(query: Array, key: Array, tokens: int) -> Array:
    """Whether a key is not after the query, of two blocks [queries, keys]."""
    row = query * tokens + lax.broadcasted_iota(jnp.int32, (tokens, tokens), 0)
    column = key * tokens + lax.broadcasted_iota(jnp.int32, (tokens, tokens), 1)
    return row >= column


def _decays(query: Array, key: Array, queries: Array, keys: Array) -> Array:
    """`A_t / A_j`, 0 for a key after the query [queries, keys]; masked before exp."""
    seen = causal(query, key, queries.shape[0])
    return jnp.exp(jnp.where(seen, queries[:, None] - keys[None, :], -jnp.inf))


def _forward(block: int, q: Any, k: Any, v: Any, log_decay: Any, states: Any, y: Any) -> None:
    mine = pl.program_id(1)
    queries, decay = q[...], log_decay[pl.ds(mine * block, block)]
    start = jnp.exp(decay)[:, None] * contract(queries, states[...], (1, 1))

    def add(b: Array, y: Array) -> Array:
        rows = pl.ds(b * block, block)
        scores = contract(queries, k[rows, :], (1, 1))
        scores *= _decays(mine, b, decay, log_decay[rows])
        return y + contract(scores.astype(q.dtype), v[rows, :], (1, 0))

    y[...] = lax.fori_loop(0, mine + 1, add, start).astype(y.dtype)


def _queries(
    block: int,
    q: Any,
    dy: Any,
    k: Any,
    v: Any,
    log_decay: Any,
    states: Any,
    dq: Any,
    up: Any,
) -> None:
    """Gradients of queries, and of log A_t as a query's."""
    mine = pl.program_id(1)
    queries, gradients = q[...], dy[...]
    decay = log_decay[pl.ds(mine * block, block)]
    start = jnp.exp(decay)[:, None] * contract(gradients, states[...], (1, 0))

    def add(b: Array, total: Array) -> Array:
        rows = pl.ds(b * block, block)
        dscores = contract(gradients, v[rows, :], (1, 1))
        dscores *= _decays(mine, b, decay, log_decay[rows])
        return total + contract(dscores.astype(q.dtype), k[rows, :], (1, 0))

    total = lax.fori_loop(0, mine + 1, add, start)
    dq[...] = total.astype(dq.dtype)
    # All that a query reads is weighted by A_t.
    up[...] = jnp.sum(total * queries.astype(F32), 1)


def _keys(
    block: int,
    k: Any,
    v: Any,
    q: Any,
    dy: Any,
    log_decay: Any,
    dk: Any,
    dv: Any,
    down: Any,
) -> None:
    """Gradients of keys, of values, and of -log A_j as a key's."""
    mine = pl.program_id(1)
    keys, values = k[...], v[...]
    decay = log_decay[pl.ds(mine * block, block)]

    def add(b: Array, totals: tuple[Array, Array]) -> tuple[Array, Array]:
        rows = pl.ds(b * block, block)
        queries, gradients = q[rows, :], dy[rows, :]
        decays = _decays(b, mine, log_decay[rows], decay)
        scores = contract(queries, keys, (1, 1)) * decays
        dscores = contract(gradients, values, (1, 1)) * decays
        return (
            totals[0] + contract(dscores.astype(q.dtype), queries, (0, 0)),
            totals[1] + contract(scores.astype(q.dtype), gradients, (0, 0)),
        )

    zeros = jnp.zeros(k.shape, F32)
    blocks = q.shape[0] // block
    found, of_values = lax.fori_loop(mine, blocks, add, (zeros, zeros))
    dk[...] = found.astype(dk.dtype)
    dv[...] = of_values.astype(dv.dtype)
    down[...] = jnp.sum(found * keys.astype(F32), 1)
