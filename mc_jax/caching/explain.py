"""What a call would run on, why, and what it costs."""

import jax.numpy as jnp

from mc_jax.caching.calls import (
    Sizes,
    block_read_call,
    deep_read_call,
    deep_write_call,
    linear_read_calls,
    linear_write_call,
)
from mc_jax.caching.kernels import no_read_kernel, no_write_kernel
from mc_jax.caching.options import Options
from mc_jax.device import described, on_gpu, this_chip
from mc_jax.kernels.block_read import config as block_read
from mc_jax.kernels.deep_read import config as deep_read
from mc_jax.kernels.deep_write import config as deep_write
from mc_jax.kernels.linear_read import config as linear_read
from mc_jax.kernels.linear_write import config as linear_write
from mc_jax.kernels.selected_memories import worth_selecting
from mc_jax.memory import get_rule
from mc_jax.memory.linear import SWLAGates
from mc_jax.memory.rule import Rule


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
    route_every: int = 1,
    expansion: int = 4,
    mem_norm: str = "layer",
    activation: str = "gelu",
    dtype: str = "bfloat16",
    device: str | None = None,
) -> str:
    """What `mc_jax.memory_caching` would run on for a fresh sequence, as a text to print.

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
      route_every: of ssc, tokens that select memories together.
      expansion: hidden width of an MLP memory over `head_dim`.
      mem_norm: norm of an MLP memory.
      activation: activation of an MLP memory.
      dtype: type of queries, keys and values.
      device: v4 | v5e | v5p | v6e | tpu7x | gpu | cpu, which need not be here; None for the one
        that is.

    Raises:
      InputError: an option that is not allowed.
    """
    options = Options(
        *(aggregation, segment_len, segmentation, write_mode, gate, top_k, chunk_len),
        route_every=route_every,
    )
    the_rule, kind = get_rule(rule, mem_norm=mem_norm, activation=activation), jnp.dtype(dtype)
    hidden = None if the_rule.network.is_linear else expansion * head_dim
    sizes = Sizes(heads * batch, length, head_dim, hidden, kind)
    with described(device):
        lines = _write_lines(rule, the_rule, options, sizes)
        return "\n".join([*lines, *_read_lines(the_rule, options, sizes)])


def _write_lines(name: str, rule: Rule, options: Options, sizes: Sizes) -> list[str]:
    """What is said of the compression."""
    deep, unwritten = not rule.network.is_linear, no_write_kernel(options, rule, sizes)
    runs_on = _runs_on(unwritten, "deep_write" if deep else "linear_write")
    lines = [f"write  {name}, {options.write_mode}: {runs_on}"]
    if deep or unwritten:
        chunk_len = options.chunk_len
        lines[0] += f"; {-(-sizes.length // chunk_len)} chunks of {chunk_len}"
    if deep:
        lines += _write_costs(deep_write_call(options, rule, sizes), not unwritten)
    elif not unwritten:
        lines += _linear_write_costs(linear_write_call(options, sizes))
        if rule.gates_type is SWLAGates:
            lines.append("       once for every token that a token writes, 2 with a window of 2")
    return lines


def _read_lines(rule: Rule, options: Options, sizes: Sizes) -> list[str]:
    """What is said of the reads of cached memories."""
    unread, heads = no_read_kernel(options, rule, sizes), sizes.heads
    memories = (sizes.length - 1) // options.segment_len
    constant = options.segmentation == "constant"
    reader = _reader(rule, options)
    lines = [f"read   {options.aggregation}: {_runs_on(unread, reader)}"]
    # A TPU's kernel multiplies with all, and weighs the others 0.
    selects = (unread or on_gpu()) and worth_selecting(options.selected, memories / 2, sizes.length)
    if options.routes_blocks:
        each = min(options.top_k, memories)
        lines[0] += f"; blocks of {options.route_every} tokens select {each} memories each"
    elif constant and selects:
        lines[0] += "; only the memories that tokens select, fewer than counted"
    if not options.caches or not memories or not constant:
        return lines
    lines.append(f"       {memories} cached memories a head")
    if options.routes_blocks:
        return lines + _block_read_costs(block_read_call(options, rule, sizes), heads, not unread)
    if reader == "deep_read":
        return lines + _deep_read_costs(deep_read_call(options, rule, sizes), heads, not unread)
    for call in linear_read_calls(options, sizes):
        # On a GPU blocks are what they are.
        lines += _linear_read_costs(call, heads, not unread and not on_gpu())
    return lines


def _reader(rule: Rule, options: Options) -> str:
    """The op that reads cached memories."""
    if options.segmentation == "logarithmic":
        return "level_read"
    if options.routes_blocks:
        return "block_read"
    deep = not rule.network.is_linear
    return "deep_read" if deep and options.aggregation != "soup" else "linear_read"


def _runs_on(reason: str | None, kernel: str) -> str:
    if reason:
        return f"xla, since {reason}"
    return f"pallas ({kernel}, through Triton)" if on_gpu() else f"pallas ({kernel})"


def _write_costs(call: deep_write.Call, on_kernel: bool) -> list[str]:
    config = deep_write.default_config(call, this_chip())
    if config is None:
        return []
    forward, backward = (
        cost(call, config) for cost in (deep_write.forward_cost, deep_write.backward_cost)
    )
    lines = [_moved(*forward[:2], *backward[:2])]
    return [*lines, _blocks(config, backward.vmem_bytes)] if on_kernel else lines


def _linear_write_costs(call: linear_write.Call) -> list[str]:
    config = linear_write.default_config(call, this_chip())
    assert config is not None  # the kernel runs
    costs = [
        cost(call, config, back)
        for back in (False, True)
        for cost in (linear_write.flops, linear_write.hbm_bytes)
    ]
    return [_moved(*costs), _blocks(config, linear_write.vmem_bytes(call, config))]


def _deep_read_costs(call: deep_read.Call, heads: int, on_kernel: bool) -> list[str]:
    config = deep_read.default_config(call, this_chip())
    if config is None:
        return []
    forward, backward = (
        cost(call, config) for cost in (deep_read.forward_cost, deep_read.backward_cost)
    )
    lines = [_moved(*(heads * x for x in (*forward[:2], *backward[:2])))]
    return [*lines, _blocks(config, backward.vmem_bytes)] if on_kernel else lines


def _block_read_costs(call: block_read.Call, heads: int, on_kernel: bool) -> list[str]:
    costs = [
        heads * cost(call, back)
        for back in (False, True)
        for cost in (block_read.flops, block_read.hbm_bytes)
    ]
    if not on_kernel:
        return [_moved(*costs)]
    config = block_read.default_config(call, this_chip())
    assert config is not None  # the kernel runs
    return [_moved(*costs), _blocks(config, block_read.vmem_bytes(call, config))]


def _linear_read_costs(call: linear_read.Call, heads: int, on_kernel: bool) -> list[str]:
    costs = [
        heads * cost(call, back)
        for back in (False, True)
        for cost in (linear_read.flops, linear_read.hbm_bytes)
    ]
    if not on_kernel:
        return [_moved(*costs)]
    config = linear_read.default_config(call, this_chip())
    assert config is not None  # the kernel runs
    return [_moved(*costs), _blocks(config, linear_read.vmem_bytes(call, config))]


def _moved(flops: int, moved: int, flops_back: int, moved_back: int) -> str:
    return (
        f"       forward {flops / 1e9:.3g} GFLOP and {moved / 1e6:.3g} MB, "
        f"backward {flops_back / 1e9:.3g} GFLOP and {moved_back / 1e6:.3g} MB"
    )


def _blocks(config: object, vmem: int) -> str:
    return f"       {config}, {vmem / 2**20:.3g} MiB of VMEM"
