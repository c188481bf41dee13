"""The write of matrix memories: one op, three implementations."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import this_chip
from mc_jax.errors import InputError
from mc_jax.kernels.choice import choose
from mc_jax.kernels.linear_write.config import Call, Config, default_config
from mc_jax.kernels.linear_write.pallas_tpu import write
from mc_jax.kernels.writing import Sequence, Written, check_write_mode
from mc_jax.kernels.writing import write as write_without_kernel
from mc_jax.memory.linear import MatrixRule, SWLAGates, Writes
from mc_jax.memory.network import MatrixWeights, accumulator
from mc_jax.memory.rule import State
from mc_jax.typing import Array, Float

F32 = jnp.float32
# Linear attention is SWLA with no window.
RULE = MatrixRule(SWLAGates)
# Tokens of a chunk in the other two forms.
XLA_TOKENS = 64


def linear_write(
    q: Float[Array, "heads length head_dim"],
    k: Float[Array, "heads length head_dim"],
    v: Float[Array, "heads length head_dim"],
    writes: Writes,
    *,
    segment_len: int,
    write_mode: str = "independent",
    implementation: str | None = None,
    config: Config | None = None,
) -> Written:
    """Compress a fresh sequence into decayed matrices and read the running one (eqs. 4 and 26).

    `M_t = alpha_t M_{t-1} + sum_i scale_t[i] v_{t-i} k_{t-i}ᵀ`, of which token t reads `M_t q_t`. A
    segment starts from nothing, in checkpoint mode from where the one before it ended.

    Args:
      q: queries; `heads` are those of all sequences.
      k: keys.
      v: values.
      writes: gates as `rule.prepare` makes them, log_alpha [heads, length] and scale [heads,
        window, length].
      segment_len: tokens of a segment; the last may have fewer.
      write_mode: independent | checkpoint.
      implementation: reference | xla | pallas | pallas_interpret (the TPU kernel's steps on any
        device, slow); None picks pallas on a TPU where it can run, else xla.
      config: steps of the kernel, for pallas alone; None picks them.

    Returns:
      Features typed as q; ends and final state in float32.

    Raises:
      InputError: an argument that is not allowed, or an implementation that cannot run here.
    """
    for field, x, shape in (
        *(("k", k, q.shape), ("v", v, q.shape)),
        ("writes.log_alpha", writes.log_alpha, q.shape[:2]),
        ("writes.scale", writes.scale[:, 0], q.shape[:2]),
    ):
        if x.shape != shape:
            raise InputError(f"{field}.shape", x.shape, str(shape))
    if not q.shape[1]:
        raise InputError("length", 0, "at least one token")
    if segment_len < 1:
        raise InputError("segment_len", segment_len, "at least 1")
    check_write_mode(write_mode)
    (heads, length, head_dim), dtype = q.shape, jnp.dtype(k.dtype)
    call = Call(heads, length, head_dim, segment_len, write_mode == "independent", dtype)
    implementation = choose(implementation, config, lambda anywhere: unsupported(call, anywhere))
    sequence = Sequence(q, k, v, writes)
    if implementation in ("pallas", "pallas_interpret"):
        written = _pallas(call, config, implementation == "pallas_interpret", sequence)
    else:
        chunk_len = next(n for n in range(XLA_TOKENS, 0, -1) if segment_len % n == 0)
        written = write_without_kernel(
            implementation, RULE, None, sequence, segment_len, chunk_len, call.independent
        )
    return written._replace(final=written.final._replace(window=_last_tokens(call, sequence)))


def _last_tokens(call: Call, sequence: Sequence) -> tuple[Array, ...]:
    """The keys and values that the next token may write again [heads, head_dim, window]."""
    window = sequence.window
    start = call.length // call.segment_len * call.segment_len if call.independent else 0
    there = jnp.arange(call.length - window, call.length) >= start

    def last(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (window, 0), (0, 0)))[:, call.length :]
        return jnp.where(there[:, None], x.astype(accumulator(x.dtype)), 0).swapaxes(1, 2)

    return last(sequence.k), last(sequence.v)


def unsupported(call: Call, any_device: bool = False) -> str | None:
    """Why the TPU kernel cannot run a call; None if it can.

    Args:
      call: its static facts.
      any_device: leave out whether a TPU is here.
    """
    if not any_device and not pltpu.is_tpu_device():
        return "the kernel runs on a TPU"
    if call.dtype not in (jnp.bfloat16, F32):
        return f"the kernel takes bfloat16 and float32, not {call.dtype}"
    if call.head_dim % 16:
        return f"the kernel takes a head_dim that is a multiple of 16, not {call.head_dim}"
    if default_config(call, this_chip()) is None:
        return (
            "the kernel takes segments of a multiple of 16 tokens, long ones in chunks of at least "
            "64, and states that fit into VMEM, not "
            f"{call.segment_len} tokens of {call.head_dim}"
        )
    return None


def _pallas(call: Call, config: Config | None, interpret: bool, sequence: Sequence) -> Written:
    """The kernel, on whole chunks, once for every token that a token writes."""
    config = config or default_config(call, this_chip())
    assert config is not None
    config.check(call)
    assert isinstance(sequence.steps, Writes)
    log_alpha, scale = sequence.steps
    chunks = config.chunks(call)
    padding = chunks * config.tokens - call.length

    def whole(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))

    log_alpha = whole(log_alpha.astype(F32))
    decay = _sums(log_alpha.reshape(call.heads, chunks, 1, config.tokens))
    queries = whole(sequence.q.astype(call.dtype))
    features, ends = jnp.zeros((), F32), jnp.zeros((), F32)
    for back in range(sequence.window + 1):
        k, v = (_shifted(call, x, back) for x in (sequence.k, sequence.v))
        v = (scale[:, back, :, None] * v).astype(call.dtype)
        more, written = write(call, config, interpret, queries, whole(k), whole(v), decay)
        features, ends = features + more, ends + written
    log_decay = jnp.sum(_by_segment(log_alpha, call.segment_len), -1)
    if not call.independent:
        log_decay = jnp.cumsum(log_decay, -1)
    states = State(MatrixWeights(ends), log_decay=log_decay)
    final = jax.tree.map(lambda x: x[:, -1], states)
    if call.independent and call.length % call.segment_len == 0:
        final = jax.tree.map(jnp.zeros_like, final)
    return Written(features[:, : call.length].astype(sequence.q.dtype), states, final)


def _sums(logs: Float[Array, "heads chunks 1 chunk"]) -> Float[Array, "heads chunks 2 chunk"]:
    """Running sums of logs in two parts that add up to them.

    Where retentions underflow, a sum of float32 has no room for those of mild ones after them. Sums
    of multiples of 1/64 are exact, and those of what is left are small.
    """
    coarse = lax.stop_gradient(jnp.round(logs * 64) / 64)
    return jnp.cumsum(jnp.concatenate([coarse, logs - coarse], 2), -1)


def _shifted(call: Call, x: Array, back: int) -> Array:
    """The tokens so many steps back [heads, length, head_dim], 0 before the first there is."""
    if not back:
        return x
    x = jnp.pad(x, ((0, 0), (back, 0), (0, 0)))[:, : call.length]
    inside = jnp.arange(call.length) % call.segment_len >= back
    return jnp.where(inside[:, None], x, 0) if call.independent else x


def _by_segment(x: Array, segment_len: int) -> Array:
    """[heads, length] as [heads, segments, segment_len], the last filled up with zeros."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % segment_len)))
    return x.reshape(x.shape[0], -1, segment_len)
