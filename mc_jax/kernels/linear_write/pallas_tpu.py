"""Kernels that write matrix memories on a TPU: the running memory's outputs, its states, gradients.

Tokens are rows. A step takes a chunk of a few heads, of which it makes all pairs in VMEM; from
chunk to chunk goes the state, which stays there. With c_t the sum of log retentions from the
chunk's start up to token t, and M the state before it,

    y_t = exp(c_t) M q_t + sum_{j <= t} exp(c_t - c_j) v_j <k_j, q_t>

The state at a chunk's end is that sum without the query. The backward kernel goes from the last
chunk to the first and takes the states between them from the forward one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import this_chip, vmem_limit
from mc_jax.kernels.linear_write.config import Call, Config
from mc_jax.kernels.tiles import contract
from mc_jax.typing import Array, Float

F32 = jnp.float32


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def write(
    call: Call,
    config: Config,
    interpret: bool,
    q: Float[Array, "heads tokens head_dim"],
    k: Float[Array, "heads tokens head_dim"],
    v: Float[Array, "heads tokens head_dim"],
    log_decay: Float[Array, "heads chunks 2 chunk"],
) -> tuple[Float[Array, "heads tokens head_dim"], Float[Array, "heads segments head_dim head_dim"]]:
    """What tokens read of the running memory, and the states at the ends of segments, float32.

    Args:
      call: the call.
      config: its steps.
      interpret: run the kernel's steps on any device.
      q: queries, whole chunks of them.
      k: keys.
      v: values.
      log_decay: sums of log retentions from each chunk's start, in two parts that add up to them;
        the gradient is that of the second.
    """
    return _forward(call, config, interpret, False, q, k, v, log_decay)


def _write_forward(call: Call, config: Config, interpret: bool, *inputs: Array) -> tuple:
    each = config.segment_chunks(call)
    keep = config.carries(call) and each > 1
    y, states = _forward(call, config, interpret, keep, *inputs)
    ends = states
    if keep:
        last = jnp.minimum(jnp.arange(1, call.segments + 1) * each, config.chunks(call)) - 1
        ends = states[:, last]
    return (y, ends), (*inputs, states if config.carries(call) else None)


def _write_backward(
    call: Call, config: Config, interpret: bool, saved: tuple, cotangents: tuple
) -> tuple:
    return _backward(call, config, interpret, *saved, *cotangents)


write.defvjp(_write_forward, _write_backward)


class _Blocks(NamedTuple):
    """Blocks of a chunk's tokens, its log decays, and matrices by segment and by chunk."""

    tokens: pl.BlockSpec
    line: pl.BlockSpec
    by_segment: pl.BlockSpec
    by_chunk: pl.BlockSpec

    @classmethod
    def of(cls, call: Call, config: Config, chunk: Any, state: Any) -> "_Blocks":
        """Those of the chunk and of the state that the functions name for a step."""
        each = config.segment_chunks(call)
        matrix = (config.heads, None, call.head_dim, call.head_dim)
        return cls(
            pl.BlockSpec(
                (config.heads, config.tokens, call.head_dim), lambda h, s: (h, chunk(s), 0)
            ),
            pl.BlockSpec((config.heads, None, 2, config.tokens), lambda h, s: (h, chunk(s), 0, 0)),
            pl.BlockSpec(matrix, lambda h, s: (h, chunk(s) // each, 0, 0)),
            pl.BlockSpec(matrix, lambda h, s: (h, state(s), 0, 0)),
        )


def _run(call: Call, config: Config, interpret: bool, kernel: Any, **blocks: Any) -> Any:
    matrices = (config.heads, call.head_dim, call.head_dim)
    return pl.pallas_call(
        functools.partial(kernel, call, config),
        grid=(call.heads // config.heads, config.chunks(call)),
        scratch_shapes=[pltpu.VMEM(matrices, F32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem_limit(this_chip())
        ),
        interpret=interpret,
        **blocks,
    )


def _forward(
    call: Call,
    config: Config,
    interpret: bool,
    keep: bool,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
) -> tuple[Array, Array]:
    """Outputs, and the states at the ends of segments, of all chunks if `keep`."""
    blocks = _Blocks.of(call, config, lambda s: s, lambda s: s)
    states = config.chunks(call) if keep else call.segments
    return _run(
        *(call, config, interpret, _forward_kernel),
        in_specs=[*[blocks.tokens] * 3, blocks.line],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((call.heads, states, *[call.head_dim] * 2), F32),
        ],
        out_specs=[blocks.tokens, blocks.by_chunk if keep else blocks.by_segment],
        name="linear_write_forward",
    )(q, k, v, log_decay)


def _forward_kernel(
    call: Call, config: Config, q_ref, k_ref, v_ref, c_ref, y_ref, state_ref, state
) -> None:
    """Grid (groups of heads, chunks)."""

    @pl.when(_starts(call, config, pl.program_id(1)))
    def _() -> None:
        state[...] = jnp.zeros_like(state)

    for head in range(config.heads):
        q, k, v = q_ref[head], k_ref[head], v_ref[head]
        decay = _Decay.of(c_ref[head])
        pairs = contract(q, k, (1, 1)) * decay.pairs
        y = contract(pairs.astype(q.dtype), v, (1, 0))
        after = contract((decay.after * v.astype(F32)).astype(q.dtype), k, (0, 0))
        if config.carries(call):
            before = state[head]
            y += decay.before * contract(q, before.astype(q.dtype), (1, 1))
            after += decay.whole * before
            state[head] = after
        y_ref[head] = y.astype(y_ref.dtype)
        state_ref[head] = after


class _Decay(NamedTuple):
    """What is left, of what: of every earlier token's write, the chunk's start, to its end."""

    pairs: Float[Array, "chunk chunk"]
    before: Float[Array, "chunk 1"]
    after: Float[Array, "chunk 1"]
    whole: Float[Array, "1 1"]

    @classmethod
    def of(cls, rows: Float[Array, "2 chunk"]) -> "_Decay":
        """From the sums of log retentions, in two parts."""
        size = rows.shape[1]
        columns, last = rows.T, rows[:, size - 1 :]
        token, other = (lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
        # Each part by itself: their sum would round away what the second is for.
        since = (columns[:, :1] - rows[:1]) + (columns[:, 1:] - rows[1:])
        left = (last[:1] - columns[:, :1]) + (last[1:] - columns[:, 1:])
        # Masked before exp, which would overflow above the diagonal.
        pairs = jnp.exp(jnp.where(token >= other, since, -jnp.inf))
        before = jnp.exp(jnp.sum(columns, 1, keepdims=True))
        return cls(pairs, before, jnp.exp(left), jnp.exp(jnp.sum(last, 0, keepdims=True)))


def _starts(call: Call, config: Config, chunk: Array) -> Array:
    """Whether a chunk starts from nothing."""
    return chunk % config.segment_chunks(call) == 0 if call.independent else chunk == 0


def _backward(
    call: Call,
    config: Config,
    interpret: bool,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    states: Array | None,
    dy: Array,
    dends: Array,
) -> tuple[Array, Array, Array, Array]:
    """Gradients of q, k, v and log_decay."""
    last = config.chunks(call) - 1
    # The state before a chunk is that after the one before it.
    blocks = _Blocks.of(call, config, lambda s: last - s, lambda s: jnp.maximum(last - s - 1, 0))
    return _run(
        *(call, config, interpret, _backward_kernel),
        in_specs=[
            (
                *([blocks.tokens] * 3),
                *(blocks.line, None if states is None else blocks.by_chunk),
                *(blocks.tokens, blocks.by_segment),
            )
        ],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v, log_decay)],
        out_specs=[*[blocks.tokens] * 3, blocks.line],
        name="linear_write_backward",
    )((q, k, v, log_decay, states, dy, dends))


def _backward_kernel(
    call: Call, config: Config, inputs, dq_ref, dk_ref, dv_ref, dc_ref, dstate
) -> None:
    """Grid (groups of heads, chunks from the last one on); `dstate` is of the state after them."""
    q_ref, k_ref, v_ref, c_ref, before_ref, dy_ref, dends_ref = inputs
    step = pl.program_id(1)
    chunk = config.chunks(call) - 1 - step
    dtype = q_ref.dtype

    @pl.when(step == 0)
    def _() -> None:
        dstate[...] = jnp.zeros_like(dstate)

    ends = (step == 0) | ((chunk + 1) % config.segment_chunks(call) == 0)

    @pl.when(ends)
    def _() -> None:
        # Nothing goes back from a segment that starts from nothing.
        kept = jnp.zeros_like(dstate) if call.independent else dstate[...]
        dstate[...] = kept + dends_ref[...]

    starts = _starts(call, config, chunk)
    for head in range(config.heads):
        q, k, v, dy = q_ref[head], k_ref[head], v_ref[head], dy_ref[head]
        wide_k, wide_q = k.astype(F32), q.astype(F32)
        decay, dafter = _Decay.of(c_ref[head]), dstate[head]
        scores = contract(q, k, (1, 1)) * decay.pairs
        dscores = contract(dy, v, (1, 1))
        dpairs = dscores * scores
        dscores = (dscores * decay.pairs).astype(dtype)
        dq = contract(dscores, k, (1, 0))
        # Beside the pairs keys and values are in the state after the chunk.
        written = dafter.astype(dtype)
        dk = decay.after * contract(v, written, (1, 0))
        kept = jnp.sum(wide_k * dk, 1, keepdims=True)
        dk_ref[head] = (dk + contract(dscores, q, (0, 0))).astype(dtype)
        dv = decay.after * contract(k, written, (1, 1))
        dv_ref[head] = (dv + contract(scores.astype(dtype), dy, (0, 0))).astype(dtype)
        dc = jnp.sum(dpairs, 1, keepdims=True) - kept
        dlast = jnp.sum(kept, 0, keepdims=True)
        if config.carries(call):
            before = jnp.where(starts, 0, before_ref[head])
            of_q = decay.before * contract(dy, before.astype(dtype), (1, 0))
            dq += of_q
            dc += jnp.sum(wide_q * of_q, 1, keepdims=True)
            dlast += decay.whole * jnp.sum(dafter * before)
            weighted = (decay.before * dy.astype(F32)).astype(dtype)
            dstate[head] = decay.whole * dafter + contract(weighted, q, (0, 0))
        dq_ref[head] = dq.astype(dtype)
        row = dc.T - jnp.sum(dpairs, 0, keepdims=True)
        end = lax.broadcasted_iota(jnp.int32, row.shape, 1) == config.tokens - 1
        row = row + jnp.where(end, dlast, 0)
        dc_ref[head] = jnp.concatenate([jnp.zeros_like(row), row])
