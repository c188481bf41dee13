"""The kernels that read chosen memories on a TPU, and all gradients of that.

Tokens lie in the lanes. Memories stay in VMEM while all tokens pass, as many as fit; which of them
a part of a block reads is a number in SMEM. Neither they nor hidden layers are gathered in HBM.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import this_chip, vmem_limit
from mc_jax.kernels.block_read.config import Call, Config
from mc_jax.kernels.deep_read import one_memory
from mc_jax.kernels.tiles import contract
from mc_jax.memory.network import MlpWeights
from mc_jax.typing import Array, Float, Int

F32 = jnp.float32


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def read(
    call: Call,
    config: Config,
    interpret: bool,
    x: Float[Array, "in tokens"],
    weights: Array | MlpWeights,
    gate: Float[Array, "reads tokens"],
    memory: Int[Array, "reads blocks"],
) -> Float[Array, "out tokens"]:
    """See `block_read`.

    Args:
      call: static facts.
      config: its blocks.
      interpret: run the kernel's steps on any device.
      x: inputs.
      weights: typed as x.
      gate: float32.
      memory: int32.
    """
    stacks = pl.cdiv(call.memories, config.resident)

    def tokens(rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((rows, config.tokens), lambda i, s: (0, i))

    memories = jax.tree.map(
        lambda w: pl.BlockSpec((config.resident, *w.shape[1:]), lambda i, s: (s, 0, 0)), weights
    )
    return pl.pallas_call(
        functools.partial(_forward_kernel, call, config),
        out_shape=jax.ShapeDtypeStruct((call.out, x.shape[1]), F32),
        grid=(call.tokens // config.tokens, stacks),
        in_specs=[(tokens(call.width), memories, tokens(call.reads), _in_smem())],
        out_specs=tokens(call.out),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem_limit(this_chip())
        ),
        interpret=interpret,
        name="block_read_forward",
    )((x, weights, gate, memory))


def _read_forward(
    call: Call, config: Config, interpret: bool, *inputs: Any
) -> tuple[Array, tuple[Any, ...]]:
    return read(call, config, interpret, *inputs), inputs


def _read_backward(
    call: Call, config: Config, interpret: bool, inputs: tuple[Any, ...], dy: Array
) -> tuple:
    x, weights, gate, memory = inputs
    return *read_back(call, config, interpret, x, weights, gate, memory, dy), None


def read_back(
    call: Call,
    config: Config,
    interpret: bool,
    x: Array,
    weights: Array | MlpWeights,
    gate: Array,
    memory: Array,
    dy: Float[Array, "out tokens"],
) -> tuple[Array, Any, Array]:
    """Gradients of x, the weights and the gates; arguments as of `read`."""
    resident = config.resident_backward
    stacks = pl.cdiv(call.memories, resident)
    # A stack stays for all tokens: fetching the next one ahead is not worth a second buffer.
    memories = jax.tree.map(
        lambda w: pl.BlockSpec(
            (resident, *w.shape[1:]), lambda s, i: (s, 0, 0), pipeline_mode=pl.Buffered(1)
        ),
        weights,
    )

    def tokens(rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((rows, config.tokens), lambda s, i: (0, i))

    def parts(rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, rows, config.tokens), lambda s, i: (s, 0, i))

    def partial(like: Array) -> jax.ShapeDtypeStruct:
        dtype = like.dtype if stacks == 1 else F32
        return jax.ShapeDtypeStruct((stacks, *like.shape), dtype)

    dx, dweights, dgate = pl.pallas_call(
        functools.partial(_backward_kernel, call, config),
        out_shape=(
            (
                partial(x),
                jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), weights),
                partial(gate),
            ),
        ),
        grid=(stacks, call.tokens // config.tokens),
        in_specs=[(tokens(call.width), memories, tokens(call.reads), _in_smem(), tokens(call.out))],
        out_specs=((parts(call.width), memories, parts(call.reads)),),
        scratch_shapes=[
            pltpu.VMEM((call.width, config.tokens), F32),
            jax.tree.map(lambda w: pltpu.VMEM((resident, *w.shape[1:]), F32), weights),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=vmem_limit(this_chip())
        ),
        interpret=interpret,
        name="block_read_backward",
    )((x, weights, gate, memory, dy))[0]
    return jnp.sum(dx, 0).astype(x.dtype), dweights, jnp.sum(dgate, 0)


read.defvjp(_read_forward, _read_backward)


def _in_smem() -> pl.BlockSpec:
    return pl.BlockSpec(memory_space=pltpu.SMEM)


def _each_read(
    call: Call,
    config: Config,
    memory: Any,
    step: Array,
    stack: tuple[Array, int],
    group: int,
    each: Callable[[list[int], list[Array], pl.Slice], None],
) -> None:
    """Call `each(reads, places, tokens)` until all reads of a grid step are made.

    Args:
      call: static facts.
      config: its blocks.
      memory: ref of what each block reads.
      step: index of the grid step's tokens.
      stack: index of the stack of memories and their number.
      group: reads that are made side by side, to hide latencies, where all are of this stack.
      each: is given which of a block's reads to make, the places of their memories in the stack,
        and the tokens.
    """

    @pl.loop(0, config.parts)
    def _(part: Array) -> None:
        start = pl.multiple_of(part * config.part, config.part)
        block = lax.div(step * config.tokens + start, call.size)
        tokens = pl.ds(start, config.part)
        for first in range(0, call.reads, group):
            some = list(range(first, min(first + group, call.reads)))
            chosen = [memory[read, block] for read in some]
            places = [memory - stack[0] * stack[1] for memory in chosen]
            here = [
                (place >= 0) & (place < stack[1]) & (memory < call.memories)
                for place, memory in zip(places, chosen, strict=True)
            ]
            together = functools.reduce(jnp.logical_and, here)

            @pl.when(together)
            def _(some: list[int] = some, places: list[Array] = places) -> None:
                each(some, places, tokens)

            if len(some) == 1:
                continue
            for read, place, alone in zip(some, places, here, strict=True):

                @pl.when(alone & ~together)
                def _(read: int = read, place: Array = place) -> None:
                    each([read], [place], tokens)


def _forward_kernel(call: Call, config: Config, inputs: Any, y_ref: Any) -> None:
    """Grid (token blocks, stacks of memories)."""
    x_ref, weights, gate, memory = inputs
    step, stack = pl.program_id(0), pl.program_id(1)

    @pl.when(stack == 0)
    def _() -> None:
        y_ref[...] = jnp.zeros_like(y_ref)

    def read(place: Array, x: Array, gate: Array) -> Array:
        if call.hidden is None:
            return gate * contract(weights[place], x, (1, 0))
        maps = weights.w1[place], weights.w2[place]
        return one_memory.read(call, config.narrow, *maps, 0.5 * x, gate)

    def each(reads: list[int], places: list[Array], tokens: pl.Slice) -> None:
        found = (
            read(place, x_ref[:, tokens], gate[i : i + 1, tokens])
            for i, place in zip(reads, places, strict=True)
        )
        y_ref[:, tokens] += functools.reduce(jnp.add, found)

    _each_read(call, config, memory, step, (stack, config.resident), config.group, each)


def _backward_kernel(
    call: Call, config: Config, inputs: Any, outputs: Any, dx: Any, sums: Any
) -> None:
    """Grid (stacks of memories, token blocks): gradients of the weights add up over tokens."""
    x_ref, weights, gate, memory, dy_ref = inputs
    dx_ref, dweights, dgate = outputs
    stack, step = pl.program_id(0), pl.program_id(1)

    @pl.when(step == 0)
    def _() -> None:
        for total in jax.tree.leaves(sums):
            total[...] = jnp.zeros_like(total)

    dx[...] = jnp.zeros_like(dx)
    dgate[...] = jnp.zeros_like(dgate)

    def read(place: Array, x: Array, dy: Array, gate: Array) -> tuple[Array, Array]:
        """Gradients of inputs and gates; those of the weights are added to their sums."""
        if call.hidden is None:
            back = contract(weights[place], dy.astype(call.dtype), (0, 0))
            sums[place] += contract((gate * dy).astype(call.dtype), x, (1, 1))
            return gate * back, jnp.sum(x.astype(F32) * back, 0, keepdims=True)
        maps = weights.w1[place], weights.w2[place]
        found = one_memory.read_back(call, config.narrow, *maps, x, dy.astype(call.dtype), gate)
        sums.w1[place] += found.w1
        sums.w2[place] += found.w2
        return found.q, found.gate

    def each(reads: list[int], places: list[Array], tokens: pl.Slice) -> None:
        for i, place in zip(reads, places, strict=True):
            line = slice(i, i + 1)
            more, of_gate = read(place, x_ref[:, tokens], dy_ref[:, tokens], gate[line, tokens])
            dx[:, tokens] += more
            dgate[line, tokens] = of_gate

    stacked = stack, config.resident_backward
    _each_read(call, config, memory, step, stacked, config.group_backward, each)
    dx_ref[...] = dx[...].astype(dx_ref.dtype)

    @pl.when(step == pl.num_programs(1) - 1)
    def _() -> None:
        pairs = zip(jax.tree.leaves(dweights), jax.tree.leaves(sums), strict=True)
        for ref, total in pairs:
            ref[...] = total[...].astype(ref.dtype)
