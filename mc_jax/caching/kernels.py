"""Which kernels a call runs on, and why."""

from typing import Any

import jax
import jax.numpy as jnp

from mc_jax.caching.cache import uses_streams
from mc_jax.caching.calls import (
    Sizes,
    block_read_call,
    deep_read_call,
    deep_write_call,
    linear_read_calls,
    linear_write_call,
    written_segment,
)
from mc_jax.caching.context import Context
from mc_jax.caching.options import Options
from mc_jax.device import on_gpu
from mc_jax.errors import InputError
from mc_jax.kernels import (
    block_read,
    chunk_read,
    deep_read,
    deep_write,
    level_read,
    linear_read,
    linear_write,
)
from mc_jax.kernels.linear_write.config import MOST_TOKENS, chunk_tokens
from mc_jax.kernels.writing import Written
from mc_jax.memory.deep import DeepRule
from mc_jax.memory.linear import LinearGates, MatrixRule
from mc_jax.memory.network import DeepParams, accumulator
from mc_jax.memory.rule import Rule
from mc_jax.typing import Array, Float


def no_read_kernel(
    options: Options, rule: Rule, sizes: Sizes, any_device: bool = False
) -> str | None:
    """Why no Pallas kernel reads the cached memories; None if one does.

    Args:
      options: static options.
      rule: update rule.
      sizes: of the sequences.
      any_device: leave out what device is here.
    """
    reason = _xla_reads(options, rule)
    if reason:
        return reason
    if options.routes_blocks:
        return block_read.unsupported(block_read_call(options, rule, sizes), any_device)
    if options.segmentation == "logarithmic":
        facts = sizes.dtype, sizes.memories(options), any_device
        reasons = (
            level_read.unsupported(options.segment_len, shape, *facts) for shape in sizes.matrices()
        )
        return next(filter(None, reasons), None)
    by_position = options.gated and not options.routed
    if rule.network.is_linear or options.aggregation == "soup":
        # Soup is two reads of matrices, with the activation between them.
        calls = linear_read_calls(options, sizes)
        reasons = (linear_read.unsupported(call, by_position, any_device) for call in calls)
        return next(filter(None, reasons), None)
    call = deep_read_call(options, rule, sizes)
    return deep_read.unsupported(call, by_position, any_device)


def no_write_kernel(
    options: Options, rule: Rule, sizes: Sizes, any_device: bool = False
) -> str | None:
    """Why no Pallas kernel compresses fresh sequences; None if one does.

    Args:
      options: static options.
      rule: update rule.
      sizes: of the sequences.
      any_device: leave out what device is here.
    """
    reason = _xla_writes(options, rule, any_device)
    if reason:
        return reason
    if rule.network.is_linear:
        return linear_write.unsupported(linear_write_call(options, sizes), any_device)
    assert isinstance(rule, DeepRule)
    return deep_write.unsupported(rule, deep_write_call(options, rule, sizes), any_device)


def _xla_reads(options: Options, rule: Rule, context: Context | None = None) -> str | None:
    """Why reads of this kind have no kernel at all; None if they have one."""
    if not options.caches:
        return "aggregation='none' reads no cached memory"
    if options.segmentation == "logarithmic":
        if not rule.network.is_linear and options.aggregation != "soup":
            return "MLP memories of logarithmic segments are read by XLA"
        if not level_read.takes_segments(options.segment_len):
            return f"logarithmic segments of {options.segment_len} tokens are read by XLA"
    if context is not None and context.exchange == "ring" and options.selected is not None:
        return "exchange='ring' with aggregation='ssc' is read by XLA"
    return None


def read_kernel(
    options: Options, rule: Rule, kernel: str | None, context: Context | None
) -> str | None:
    """The implementation of reads where `kernel` is asked for: XLA's if they have no other."""
    return "xla" if _xla_reads(options, rule, context) else kernel


def _xla_writes(options: Options, rule: Rule, any_device: bool) -> str | None:
    """Why memories of this kind have no write kernel at all; None if they have one.

    Args:
      options: static options.
      rule: update rule.
      any_device: whether the kernel is that of a TPU, whatever device is here.
    """
    if rule.network.is_linear:
        if on_gpu() and not any_device:
            return "matrix memories are written by XLA on a GPU"
        if options.caches and chunk_tokens(options.segment_len) is None:
            return f"segments of {options.segment_len} tokens are written by XLA"
        return None
    if options.aggregation == "soup":
        return "soup mixes the online memory's linear maps, which XLA leaves open"
    if uses_streams(rule, options):
        return "buckets that are compressed from their tokens are written by XLA"
    return None


def check_implementation(
    implementation: str,
    options: Options,
    rule: Rule,
    sizes: Sizes,
    context: Context | None = None,
) -> None:
    """Raise InputError if Pallas kernels are named that cannot run.

    Where a half of the work, writing or reading, has no kernel at all, XLA does it beside them.
    """
    if implementation not in ("pallas", "pallas_interpret"):
        return
    anywhere = implementation == "pallas_interpret"
    written, read = _xla_writes(options, rule, anywhere), _xla_reads(options, rule, context)
    reasons = []
    if on_gpu() and not anywhere and rule.gates_type is LinearGates:
        # The running memory of these has a kernel of its own.
        reasons.append(chunk_read.unsupported(options.chunk_len, sizes.head_dim, sizes.dtype))
    if not written:
        reasons.append(no_write_kernel(options, rule, sizes, anywhere))
    if not read:
        reasons.append(no_read_kernel(options, rule, sizes, anywhere))
    if not reasons:
        reasons.append(read)
    for reason in reasons:
        if reason:
            allowed = f"xla, or the default, since {reason}"
            raise InputError("implementation", implementation, allowed)


def write_on_kernel(
    options: Options,
    rule: Rule,
    params: DeepParams | None,
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length heads head_dim"],
    v: Float[Array, "batch length heads head_dim"],
    gates: Any,
    kernel: str | None,
) -> Written | None:
    """Compress a fresh sequence on a Pallas kernel, which takes all heads at once.

    Args:
      options: static options.
      rule: update rule.
      params: its learned parts.
      q: queries.
      k: keys.
      v: values.
      gates: the rule's gates, leaves [batch, length, heads].
      kernel: xla | pallas | pallas_interpret; None for the best.

    Returns:
      Leaves [batch, heads, ...]; None if no kernel runs here, so that XLA writes.
    """
    batch, length, heads, head_dim = q.shape
    anywhere = kernel == "pallas_interpret"
    hidden = None if params is None else params.w1.shape[-1]
    sizes = Sizes(batch * heads, length, head_dim, hidden, q.dtype)
    if kernel == "xla" or no_write_kernel(options, rule, sizes, anywhere):
        return None

    def heads_first(x: Array) -> Array:
        return jnp.moveaxis(x, 2, 1).reshape(batch * heads, length, *x.shape[3:])

    q, k, v, gates = jax.tree.map(heads_first, (q, k, v, gates))
    implementation = kernel or "pallas"
    if params is None:
        written = _write_matrices(options, rule, q, k, v, gates, implementation)
    else:
        written = _write_networks(options, rule, params, q, k, v, gates, implementation)
    return jax.tree.map(lambda x: x.reshape(batch, heads, *x.shape[1:]), written)


def _write_matrices(
    options: Options,
    rule: Rule,
    q: Array,
    k: Array,
    v: Array,
    gates: Any,
    implementation: str,
) -> Written:
    """Arguments as `write_on_kernel`, heads of all sequences first."""
    assert isinstance(rule, MatrixRule)
    dtype, there = accumulator(k.dtype), jnp.ones(q.shape[:2], bool)
    by_token = jax.tree.map(lambda x: jnp.moveaxis(x, 1, -1), gates)
    return linear_write.linear_write(
        q,
        k,
        v,
        jax.vmap(lambda gates, valid: rule.prepare(gates, valid, dtype))(by_token, there),
        segment_len=written_segment(options, q.shape[1], MOST_TOKENS),
        write_mode="independent" if options.resets else "checkpoint",
        implementation=implementation,
    )


def _write_networks(
    options: Options,
    rule: Rule,
    params: DeepParams,
    q: Array,
    k: Array,
    v: Array,
    gates: Any,
    implementation: str,
) -> Written:
    """Arguments as `write_on_kernel`, heads of all sequences first."""
    assert isinstance(rule, DeepRule)

    def for_batch(x: Array) -> Array:
        batch = q.shape[0] // x.shape[0]
        return jnp.broadcast_to(x, (batch, *x.shape)).reshape(-1, *x.shape[1:])

    return deep_write.deep_write(
        rule,
        jax.tree.map(for_batch, params),
        q,
        k,
        v,
        rule.prepare(gates, jnp.ones(gates.eta.shape, bool), accumulator(k.dtype)),
        segment_len=written_segment(options, q.shape[1], options.chunk_len),
        chunk_len=options.chunk_len,
        write_mode="independent" if options.resets else "checkpoint",
        implementation=implementation,
    )
