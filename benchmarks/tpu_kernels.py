"""The kernels that `benchmarks.tpu_static` compiles: an entry each."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from benchmarks.tpu_attention import flash_attention, splash_attention
from benchmarks.tpu_work import HEAD_DIM, HEADS, LENGTH, SEGMENT_LEN, Blocks, Kernel, shape


def linear_read(
    backward: bool,
    segment_len: int = SEGMENT_LEN,
    head_dim: int = HEAD_DIM,
    length: int = LENGTH,
    heads: int = HEADS,
    top_k: int | None = None,
    routed: bool = True,
    blocks: Blocks | None = None,
) -> Kernel:
    from mc_jax.kernels.gates import Router
    from mc_jax.kernels.linear_read import pallas_tpu
    from mc_jax.kernels.linear_read.config import Call, default_config, flops, hbm_bytes

    memories = length // segment_len
    dtype = jnp.dtype(jnp.bfloat16)
    facts = length, length, memories, head_dim, segment_len, top_k, routed
    call = Call(*facts, head_dim, head_dim, dtype)
    tokens = shape(heads, head_dim, length)
    line = shape(heads, length, dtype=jnp.float32)
    router = Router(tokens, line, shape(heads, memories, head_dim, dtype=jnp.float32))
    weights = shape(heads, memories, head_dim, head_dim)
    first = shape(1, dtype=jnp.int32)
    args: tuple = (tokens, router if routed else None, weights)
    if backward:
        down = shape(heads, 1, length, dtype=jnp.float32)
        args += (tokens, tokens, down) if routed else (None, tokens, None)

    def build(chip: pltpu.TpuInfo) -> tuple[Callable, tuple]:
        config = default_config(call, chip)
        assert config is not None
        config = dataclasses.replace(config, **blocks or {})
        config.check(memories)
        op = pallas_tpu.backward if backward else pallas_tpu.forward

        def run(first, *args):
            return jax.vmap(functools.partial(op, call, config, False, first))(*args)

        return run, (first, *args)

    name = "linear_read_backward" if backward else "linear_read_forward"
    costs = heads * flops(call, backward), heads * hbm_bytes(call, backward)
    return Kernel(build, (name,), *costs)


def deep_read(
    backward: bool,
    mem_norm: str = "layer",
    length: int = LENGTH,
    top_k: int | None = None,
    blocks: Blocks | None = None,
) -> Kernel:
    from mc_jax.device import this_chip
    from mc_jax.kernels.deep_read import call_of
    from mc_jax.kernels.deep_read.backward import backward as read_back
    from mc_jax.kernels.deep_read.config import backward_cost, default_config, forward_cost
    from mc_jax.kernels.deep_read.forward import forward as read
    from mc_jax.kernels.gates import Router
    from mc_jax.memory.network import MlpWeights

    memories, hidden = length // SEGMENT_LEN, 4 * HEAD_DIM
    tokens, line = shape(HEADS, HEAD_DIM, length), shape(HEADS, length, dtype=jnp.float32)
    router = Router(tokens, line, shape(HEADS, memories, HEAD_DIM, dtype=jnp.float32))
    weights = MlpWeights(
        shape(HEADS, memories, HEAD_DIM, hidden), shape(HEADS, memories, hidden, HEAD_DIM)
    )
    one = jax.tree.map(lambda x: shape(*x.shape[1:], dtype=x.dtype), (tokens, weights, router))
    q, memory, scored = one
    call = call_of(q, memory, scored, "gelu", mem_norm, SEGMENT_LEN, top_k)
    args: tuple = (tokens, router, weights)
    if backward:
        args += (tokens, tokens, shape(HEADS, 1, length, dtype=jnp.float32))

    def build(chip: pltpu.TpuInfo) -> tuple[Callable, tuple]:
        config = default_config(call, chip)
        assert config is not None
        config = dataclasses.replace(config, **blocks or {})
        config.check(call)
        op = read_back if backward else read

        def run(first, *args):
            return jax.vmap(functools.partial(op, call, config, False, first))(*args)

        return run, (shape(1, dtype=jnp.int32), *args)

    config = default_config(call, this_chip())
    assert config is not None
    config = dataclasses.replace(config, **blocks or {})
    cost = (backward_cost if backward else forward_cost)(call, config)
    name = "deep_read_backward" if backward else "deep_read_forward"
    return Kernel(
        *(build, (name,), HEADS * cost.flops, HEADS * cost.hbm_bytes),
        arrays=selections(length, config.tokens, top_k) if top_k else lambda: None,
    )


def selections(length: int, block: int, top_k: int) -> Callable[[], int]:
    """How many tokens of a block selected a memory, in random order, if all are equally likely."""
    random = np.random.default_rng(0)
    segments = block // SEGMENT_LEN
    found: list[int] = []
    for first in range(0, length // SEGMENT_LEN, segments):
        # Of every segment of the block, how many tokens selected each of the memories it sees.
        chosen = [
            np.append(
                random.binomial(SEGMENT_LEN, min(1, top_k / max(seen, 1)), seen),
                np.zeros(first + segments - 1 - seen, int),
            )
            for seen in range(first, first + segments)
        ]
        found += np.sum(chosen, axis=0).tolist()
    return itertools.cycle(random.permutation(found).tolist()).__next__


def block_read(
    backward: bool, mem_norm: str | None, size: int = SEGMENT_LEN, blocks: Blocks | None = None
) -> Kernel:
    """Blocks of `size` tokens that have chosen four memories, the first ones as well.

    They are MLPs, or for `mem_norm=None` matrices.
    """
    from mc_jax.kernels.block_read import Call, pallas_tpu
    from mc_jax.kernels.block_read.config import default_config, flops, hbm_bytes
    from mc_jax.memory.network import MlpWeights

    memories, reads, hidden = LENGTH // SEGMENT_LEN, 4, 4 * HEAD_DIM
    facts = LENGTH // size, size, reads, memories
    kind = jnp.dtype(jnp.bfloat16)
    tokens = shape(HEADS, HEAD_DIM, LENGTH)
    if mem_norm is None:
        call = Call(*facts, (HEAD_DIM, HEAD_DIM), kind)
        weights: Any = shape(HEADS, memories, HEAD_DIM, HEAD_DIM)
    else:
        call = Call(*facts, (HEAD_DIM, hidden), kind, "gelu", mem_norm == "layer")
        maps = (memories, HEAD_DIM, hidden), (memories, hidden, HEAD_DIM)
        weights = MlpWeights(*(shape(HEADS, *sizes) for sizes in maps))
    gate = shape(HEADS, reads, LENGTH, dtype=jnp.float32)
    memory = shape(HEADS, reads, call.blocks, dtype=jnp.int32)
    args: tuple = (tokens, weights, gate, memory)
    if backward:
        args += (shape(HEADS, HEAD_DIM, LENGTH, dtype=jnp.float32),)

    def build(chip: pltpu.TpuInfo) -> tuple[Callable, tuple]:
        config = default_config(call, chip)
        assert config is not None
        config = dataclasses.replace(config, **blocks or {})
        config.check(call)

        def run(*args):
            if not backward:
                return jax.vmap(functools.partial(pallas_tpu.read, call, config, False))(*args)
            return jax.vmap(functools.partial(pallas_tpu.read_back, call, config, False))(*args)

        return run, args

    name = "block_read_backward" if backward else "block_read_forward"
    cost = HEADS * flops(call, backward), HEADS * hbm_bytes(call, backward)
    # Every block reads four memories, whichever they are.
    return Kernel(build, (name,), *cost, arrays=lambda: 0)


def deep_write(
    backward: bool,
    rule: str = "titans",
    head_dim: int = HEAD_DIM,
    chunk_len: int = 64,
    implementation: str = "pallas",
    blocks: Blocks | None = None,
) -> Kernel:
    """With the memory norm, independent segments; the backward pass needs the forward one first."""
    from mc_jax.device import this_chip
    from mc_jax.kernels.deep_write import Call
    from mc_jax.kernels.deep_write import deep_write as write
    from mc_jax.kernels.deep_write.config import backward_cost, default_config, forward_cost
    from mc_jax.memory import DeepParams, NormParams, get_rule
    from mc_jax.memory.deep import DeepRule, Steps

    hidden, dtype = 4 * head_dim, jnp.dtype(jnp.bfloat16)
    the_rule = get_rule(rule)
    assert isinstance(the_rule, DeepRule)
    tokens, line = shape(HEADS, LENGTH, head_dim), shape(HEADS, LENGTH, dtype=jnp.float32)
    row = shape(HEADS, head_dim, dtype=jnp.float32)
    params = DeepParams(
        shape(HEADS, head_dim, hidden, dtype=jnp.float32),
        shape(HEADS, hidden, head_dim, dtype=jnp.float32),
        NormParams(row, row),
    )
    momentum = line if rule == "titans" else None
    steps = Steps(line, line, momentum, momentum)
    call = Call(
        *(HEADS, LENGTH, head_dim, hidden, SEGMENT_LEN, chunk_len, True, rule == "titans"),
        *("gelu", True, dtype, dtype),
    )

    def build(chip: pltpu.TpuInfo) -> tuple[Callable, tuple]:
        config = default_config(call, chip)
        assert config is not None
        config = dataclasses.replace(config, **blocks or {})
        chosen = config if implementation == "pallas" else None

        def run(params, q, k, v, steps):
            return write(
                the_rule,
                params,
                q,
                k,
                v,
                steps,
                segment_len=SEGMENT_LEN,
                chunk_len=chunk_len,
                ends_dtype=dtype,
                implementation=implementation,
                config=chosen,
            )

        def gradient(*args):
            outputs, back = jax.vjp(run, *args)
            return back(outputs)

        return gradient if backward else run, (params, tokens, tokens, tokens, steps)

    config = default_config(call, this_chip())
    assert config is not None
    cost = (backward_cost if backward else forward_cost)(call, config)
    name = "deep_write_backward" if backward else "deep_write"
    names = (name,) if implementation == "pallas" else ()
    return Kernel(build, names, cost.flops, cost.hbm_bytes)


def level_read(backward: bool) -> Kernel:
    """All levels of Log-Linear++, of which a token reads half; their matrices as gathered."""
    from mc_jax.kernels.level_read import level_read as read

    segments = LENGTH // SEGMENT_LEN
    levels = (segments - 1).bit_length()
    tokens = shape(HEADS, HEAD_DIM, LENGTH)
    matrices = [shape(HEADS, segments, HEAD_DIM, HEAD_DIM) for _ in range(levels)]
    gate = shape(HEADS, levels, LENGTH, dtype=jnp.float32)
    one = functools.partial(read, implementation="pallas")

    def gradient(*args: Any) -> Any:
        y, back = jax.vjp(jax.vmap(one), *args)
        return back(y)

    run = gradient if backward else jax.vmap(one)
    reads = sum(SEGMENT_LEN * segment.bit_count() for segment in range(segments))
    # Inputs and their gradients are bfloat16, outputs and theirs float32.
    products, token_bytes = (2, 2 + 4 + 2) if backward else (1, 2 + 4)
    matrix_bytes = products * levels * segments * HEAD_DIM**2 * 2
    return Kernel(
        lambda chip: (run, (tokens, matrices, gate)),
        ("level_read_backward" if backward else "level_read_forward",),
        HEADS * products * 2 * HEAD_DIM**2 * reads,
        HEADS * (token_bytes * HEAD_DIM * LENGTH + matrix_bytes + products * 4 * levels * LENGTH),
    )


def linear_write(
    backward: bool,
    write_mode: str = "independent",
    segment_len: int = SEGMENT_LEN,
    implementation: str = "pallas",
    blocks: Blocks | None = None,
) -> Kernel:
    """The backward pass needs the forward one first."""
    from mc_jax.device import this_chip
    from mc_jax.kernels.linear_write import Call, default_config, flops, hbm_bytes
    from mc_jax.kernels.linear_write import linear_write as write
    from mc_jax.memory.linear import Writes

    tokens, line = shape(HEADS, LENGTH, HEAD_DIM), shape(HEADS, LENGTH, dtype=jnp.float32)
    independent, dtype = write_mode == "independent", jnp.dtype(jnp.bfloat16)
    call = Call(HEADS, LENGTH, HEAD_DIM, segment_len, independent, dtype)

    def build(chip: pltpu.TpuInfo) -> tuple[Callable, tuple]:
        config = default_config(call, chip)
        assert config is not None
        config = dataclasses.replace(config, **blocks or {})

        def run(q: jax.Array, k: jax.Array, v: jax.Array, log_alpha: jax.Array) -> Any:
            return write(
                *(q, k, v, Writes(log_alpha, jnp.ones_like(log_alpha)[:, None])),
                segment_len=segment_len,
                write_mode=write_mode,
                implementation=implementation,
                config=config if implementation == "pallas" else None,
            )

        def gradient(*args: jax.Array) -> Any:
            outputs, back = jax.vjp(run, *args)
            return back(outputs)

        return gradient if backward else run, (tokens, tokens, tokens, line)

    config = default_config(call, this_chip())
    assert config is not None
    config = dataclasses.replace(config, **blocks or {})
    name = "linear_write_backward" if backward else "linear_write_forward"
    names = (name,) if implementation == "pallas" else ()
    return Kernel(build, names, flops(call, config, backward), hbm_bytes(call, config, backward))


part = functools.partial
# Attention, which has no blocks of ours, takes no `blocks`.
KERNELS: dict[str, Callable[..., Kernel]] = {
    "linear_read grm forward": part(linear_read, False),
    "linear_read grm backward": part(linear_read, True),
    "linear_read ssc forward": part(linear_read, False, top_k=4),
    "linear_read ssc backward": part(linear_read, True, top_k=4),
    "linear_read residual forward": part(linear_read, False, routed=False),
    "linear_read residual backward": part(linear_read, True, routed=False),
    "linear_read grm forward, C 1024": part(linear_read, False, segment_len=1024),
    "linear_read grm backward, C 1024": part(linear_read, True, segment_len=1024),
    "linear_read grm forward, d 64": part(linear_read, False, head_dim=64),
    "linear_read grm backward, d 64": part(linear_read, True, head_dim=64),
    "linear_read grm forward, d 256": part(linear_read, False, head_dim=256),
    "linear_read grm backward, d 256": part(linear_read, True, head_dim=256),
    "level_read forward": part(level_read, False),
    "level_read backward": part(level_read, True),
    "linear_write forward": part(linear_write, False),
    "linear_write backward": part(linear_write, True),
    "linear_write forward, checkpoint, C 1024": part(linear_write, False, "checkpoint", 1024),
    "linear_write backward, checkpoint, C 1024": part(linear_write, True, "checkpoint", 1024),
    "deep_read grm forward": part(deep_read, False),
    "deep_read grm backward": part(deep_read, True),
    "deep_read grm forward, L 4096": part(deep_read, False, length=4096),
    "deep_read grm forward, no norm": part(deep_read, False, "none"),
    "deep_read grm backward, no norm": part(deep_read, True, "none"),
    "deep_read ssc forward, no norm": part(deep_read, False, "none", top_k=4),
    "deep_read ssc backward, no norm": part(deep_read, True, "none", top_k=4),
    "deep_read grm forward, no norm, N 32": part(deep_read, False, "none", LENGTH // 2),
    "deep_read ssc forward, no norm, N 32": part(deep_read, False, "none", LENGTH // 2, 4),
    "block_read forward, matrices": part(block_read, False, None),
    "block_read backward, matrices": part(block_read, True, None),
    "block_read forward, matrices, blocks of 128": part(block_read, False, None, 128),
    "block_read backward, matrices, blocks of 128": part(block_read, True, None, 128),
    "block_read forward": part(block_read, False, "layer"),
    "block_read backward": part(block_read, True, "layer"),
    "block_read forward, no norm": part(block_read, False, "none"),
    "block_read backward, no norm": part(block_read, True, "none"),
    "block_read forward, no norm, blocks of 128": part(block_read, False, "none", 128),
    "block_read backward, no norm, blocks of 128": part(block_read, True, "none", 128),
    "deep_write titans forward": part(deep_write, False),
    "deep_write titans backward": part(deep_write, True),
    "deep_write titans forward, d 256, b 128": part(deep_write, False, "titans", 256, 128),
    "deep_write titans backward, d 256, b 128": part(deep_write, True, "titans", 256, 128),
    "deep_write dla forward": part(deep_write, False, "dla"),
    "deep_write dla backward": part(deep_write, True, "dla"),
    "XLA's scan of titans forward": part(deep_write, False, implementation="xla"),
    "XLA's scan of titans backward": part(deep_write, True, implementation="xla"),
    "XLA's linear_write forward": part(linear_write, False, implementation="xla"),
    "XLA's linear_write backward": part(linear_write, True, implementation="xla"),
    "flash attention forward, blocks of 512": part(flash_attention, False, 512),
    "flash attention backward, blocks of 512": part(flash_attention, True, 512),
    "flash attention forward, blocks of 1024": part(flash_attention, False, 1024),
    "flash attention backward, blocks of 1024": part(flash_attention, True, 1024),
    "splash attention forward, blocks of 512": part(splash_attention, False, 512),
    "splash attention backward, blocks of 512": part(splash_attention, True, 512),
    "splash attention forward, blocks of 1024": part(splash_attention, False, 1024),
    "splash attention backward, blocks of 1024": part(splash_attention, True, 1024),
}
