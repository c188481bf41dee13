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
from mc_jax.device import on_gpu, this_chip
from mc_jax.kernels.block_read import config as block_read
from mc_jax.kernels.deep_read import config as deep_read
from mc_jax.kernels.deep_write import config as deep_write
from mc_jax.kernels.linear_read import config as linear_read
from mc_jax.kernels.linear_write import config as linear_write
from mc_jax.kernels.selected_memories import worth_selecting
from mc_jax.memory import get_rule
from mc_jax.memory.linear import SWLAGates


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
      route_every: of ssc, tokens that select memories together.
      expansion: hidden width of an MLP memory over `head_dim`.
      mem_norm: norm of an MLP memory.
      activation: activation of an MLP memory.
      dtype: type of queries, keys and values.

    Raises:
      InputError: an option that is not allowed.
    """
    options = Options(
        *(aggregation, segment_len, segmentation, write_mode, gate, top_k, chunk_len),
        route_every=route_every,
    )
    the_rule, kind = get_rule(rule, mem_norm=mem_norm, activation=activation), jnp.dtype(dtype)
    deep, all_heads = not the_rule.network.is_linear, heads * batch
    sizes = Sizes(all_heads, length, head_dim, expansion * head_dim if deep else None, kind)
    memories = (length - 1) // segment_len
    unwritten = no_write_kernel(options, the_rule, sizes)
    unread = no_read_kernel(options, the_rule, sizes)
    writer = "deep_write" if deep else "linear_write"
    lines = [f"write  {rule}, {write_mode}: {_runs_on(unwritten, writer)}"]
    if deep or unwritten:
        lines[0] += f"; {-(-length // chunk_len)} chunks of {chunk_len}"
    if deep:
        lines += _write_costs(deep_write_call(options, the_rule, sizes), not unwritten)
    elif not unwritten:
        lines += _linear_write_costs(linear_write_call(options, sizes))
        if the_rule.gates_type is SWLAGates:
            lines.append("       once for every token that a token writes, 2 with a window of 2")
    reader = "deep_read" if deep and aggregation != "soup" else "linear_read"
    if options.routes_blocks:
        reader = "block_read"
    if segmentation == "logarithmic":
        reader = "level_read"
    lines.append(f"read   {aggregation}: {_runs_on(unread, reader)}")
    constant = options.segmentation == "constant"
    # A TPU's kernel multiplies with all, and weighs the others 0.
    selects = (unread or on_gpu()) and worth_selecting(options.selected, memories / 2, length)
    if options.routes_blocks:
        each = min(top_k, memories)
        lines[-1] += f"; blocks of {route_every} tokens select {each} memories each"
    elif constant and selects:
        lines[-1] += "; only the memories that tokens select, fewer than counted"
    if not options.caches or not memories or not constant:
        return "\n".join(lines)
    lines.append(f"       {memories} cached memories a head")
    if options.routes_blocks:
        chosen = block_read_call(options, the_rule, sizes)
        lines += _block_read_costs(chosen, all_heads, not unread)
    elif reader == "deep_read":
        read = deep_read_call(options, the_rule, sizes)
        lines += _deep_read_costs(read, all_heads, not unread)
    else:
        for call in linear_read_calls(options, sizes):
            # On a GPU blocks are what they are.
            lines += _linear_read_costs(call, all_heads, not unread and not on_gpu())
    return "\n".join(lines)


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
