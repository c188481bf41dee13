"""The write of matrix memories: one op, three implementations."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mc_jax.errors import InputError
from mc_jax.kernels.chips import this_chip
from mc_jax.kernels.choice import choose
from mc_jax.kernels.linear_write.config import Call, Config, default_config
from mc_jax.kernels.linear_write.pallas_tpu import write
from mc_jax.kernels.writing import Sequence, Written, reference, xla
from mc_jax.memory.linear import Writes
from mc_jax.memory.network import MatrixWeights, accumulator
from mc_jax.memory.rule import State, get_rule
from mc_jax.typing import Array, Float

F32 = jnp.float32
# Tokens of a chunk in the other two forms.
XLA_TOKENS = 64


def linear_write(
    q: Float[Array, "heads length head_dim"],
    k: Float[Array, "heads length head_dim"],
    v: Float[Array, "heads length head_dim"],
    log_alpha: Float[Array, "heads length"],
    *,
    segment_len: int,
    write_mode: str = "independent",
    implementation: str | None = None,
    config: Config | None = None,
) -> Written:
    """Compress a fresh sequence into decayed matrices and read the running one (eqs. 4 and 26).

    `M_t = alpha_t M_{t-1} + v_t k_tᵀ`, of which token t reads `M_t q_t`. A segment starts from
    nothing, in checkpoint mode from where the one before it ended.

    Args:
      q: queries; `heads` are those of all sequences.
      k: keys.
      v: values.
      log_alpha: logarithms of the retention, at most 0; finite.
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
        ("log_alpha", log_alpha, q.shape[:2]),
    ):
        if x.shape != shape:
            raise InputError(f"{field}.shape", x.shape, str(shape))
    if not q.shape[1]:
        raise InputError("length", 0, "at least one token")
    if segment_len < 1:
        raise InputError("segment_len", segment_len, "at least 1")
    if write_mode not in ("independent", "checkpoint"):
        raise InputError("write_mode", write_mode, "independent | checkpoint")
    (heads, length, head_dim), dtype = q.shape, jnp.dtype(k.dtype)
    call = Call(heads, length, head_dim, segment_len, write_mode == "independent", dtype)
    implementation = choose(implementation, config, lambda anywhere: unsupported(call, anywhere))
    if implementation in ("pallas", "pallas_interpret"):
        return _pallas(call, config, implementation == "pallas_interpret", q, k, v, log_alpha)
    writes = Writes(
        log_alpha.astype(accumulator(k.dtype)),
        jnp.ones_like(log_alpha[:, None], accumulator(k.dtype)),
    )
    form = xla if implementation == "xla" else reference
    chunk_len = next(n for n in range(XLA_TOKENS, 0, -1) if segment_len % n == 0)
    sequence = Sequence(q, k, v, writes)
    return form(get_rule("linear"), None, sequence, segment_len, chunk_len, call.independent)


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
            f"the kernel takes segments of a multiple of 16 tokens and states that fit into VMEM, "
            f"not {call.segment_len} tokens of {call.head_dim}"
        )
    return None


def _pallas(
    call: Call,
    config: Config | None,
    interpret: bool,
    q: Array,
    k: Array,
    v: Array,
    log_alpha: Array,
) -> Written:
    """The kernel, on whole chunks."""
    config = config or default_config(call, this_chip())
    assert config is not None
    config.check(call)
    chunks = config.chunks(call)
    padding = chunks * config.tokens - call.length

    def whole(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))

    log_alpha = whole(log_alpha.astype(F32)).reshape(call.heads, chunks, 1, config.tokens)
    tokens = (whole(x.astype(call.dtype)) for x in (q, k, v))
    features, ends = write(call, config, interpret, *tokens, jnp.cumsum(log_alpha, -1))
    by_segment = _by_segment(log_alpha.reshape(call.heads, -1), call.segment_len)
    log_decay = jnp.sum(by_segment, -1)
    if not call.independent:
        log_decay = jnp.cumsum(log_decay, -1)
    states = State(MatrixWeights(ends), log_decay=log_decay)
    final = jax.tree.map(lambda x: x[:, -1], states)
    if call.independent and call.length % call.segment_len == 0:
        final = jax.tree.map(jnp.zeros_like, final)
    nothing = jnp.zeros((call.heads, call.head_dim, 0), F32)
    features = features[:, : call.length].astype(q.dtype)
    return Written(features, states, final._replace(window=(nothing, nothing)))


def _by_segment(x: Array, segment_len: int) -> Array:
    """[heads, length] as [heads, segments, segment_len], the last filled up with zeros."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % segment_len)))
    return x.reshape(x.shape[0], -1, segment_len)
