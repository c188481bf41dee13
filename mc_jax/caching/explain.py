"""What a call would run on, why, and what it costs."""

import jax.numpy as jnp

from mc_jax.caching.kernels import no_read_kernel, no_write_kernel
from mc_jax.caching.options import Options
from mc_jax.kernels.chips import this_chip
from mc_jax.kernels.linear_read.config import (
    Call,
    default_config,
    flops,
    hbm_bytes,
    vmem_bytes,
)
from mc_jax.kernels.tiles import round_up
from mc_jax.memory import get_rule


def explain(
    length: int,
    *,
    rule: str = "linear",
    heads: int,
    head_dim: int,
    batch: int = 1,
    aggregation: str = "grm",
    segment_len: int = 256,
    segmentation: str = "constant",
    write_mode: str = "independent",
    gate: str = "context",
    top_k: int = 4,
    chunk_len: int = 64,
    expansion: int = 4,
    dtype: str = "bfloat16",
) -> str:
    """What `mc_jax.memory_caching` would run on here for a fresh sequence, as a text to print.

    Args:
      length: tokens of a sequence.
      rule: update rule.
      heads: heads.
      head_dim: width of a head.
      batch: sequences.
      aggregation: as in `memory_caching`, and so the rest.
      segment_len: tokens of a segment.
      segmentation: constant | logarithmic.
      write_mode: independent | checkpoint.
      gate: gate.
      top_k: cached memories that ssc selects.
      chunk_len: tokens of a chunk.
      expansion: hidden width of an MLP memory over `head_dim`.
      dtype: type of queries, keys and values.

    Raises:
      InputError: an option that is not allowed.
    """
    options = Options(aggregation, segment_len, segmentation, write_mode, gate, top_k, chunk_len)
    the_rule, kind = get_rule(rule), jnp.dtype(dtype)
    hidden = None if the_rule.network.is_linear else expansion * head_dim
    unwritten = no_write_kernel(options, the_rule, head_dim, hidden, kind)
    reason = no_read_kernel(options, the_rule, head_dim, hidden, kind)
    reader = "linear_read" if hidden is None or aggregation == "soup" else "deep_read"
    lines = [
        f"write  {rule}, {write_mode}: {_runs_on(unwritten, 'deep_write')}; "
        f"{-(-length // chunk_len)} chunks of {chunk_len}",
        f"read   {aggregation}: {_runs_on(reason, reader)}",
    ]
    memories = (length - 1) // segment_len
    if options.caches and memories and the_rule.network.is_linear:
        lines += _read_costs(options, length, memories, heads * batch, head_dim, kind, not reason)
    return "\n".join(lines)


def _runs_on(reason: str | None, kernel: str) -> str:
    return f"xla, since {reason}" if reason else f"pallas ({kernel})"


def _read_costs(
    options: Options,
    length: int,
    memories: int,
    heads: int,
    head_dim: int,
    dtype: jnp.dtype,
    kernel: bool,
) -> list[str]:
    config = default_config(length, memories, head_dim, dtype, this_chip())
    tokens = round_up(length, config.tokens)
    call = Call(
        tokens, length, memories, head_dim, options.segment_len, options.selected, options.routed
    )
    lines = []
    if options.segmentation == "constant":
        costs = [
            f"{name} {heads * flops(call, back) / 1e9:.3g} GFLOP and "
            f"{heads * hbm_bytes(call, dtype, back) / 1e6:.3g} MB"
            for name, back in (("forward", False), ("backward", True))
        ]
        lines.append(f"       {memories} cached memories a head: " + ", ".join(costs))
    if kernel:
        lines.append(f"       {config}, {vmem_bytes(call, config, dtype) / 2**20:.3g} MiB of VMEM")
    return lines
