"""The kernel that goes back through a read of MLP memories.

`one_memory.read_back` says what a memory's read gives; `reading.add_router_gradient` goes on from
the gradients of the gates. Nothing is kept of the forward pass but its inputs and results: gates
and hidden layers are computed again, gates by the same instructions, so that the same memories are
selected.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import this_chip, vmem_limit
from mc_jax.kernels.block_gates import store_gates
from mc_jax.kernels.deep_read import one_memory
from mc_jax.kernels.deep_read.blocks import each_read
from mc_jax.kernels.deep_read.config import Call, Config
from mc_jax.kernels.deep_read.forward import ranked_shapes
from mc_jax.kernels.deep_read.selection import each_selected, store_ranks
from mc_jax.kernels.gates import Router
from mc_jax.kernels.reading import add_router_gradient, prepared, seen_by
from mc_jax.kernels.tiles import contract
from mc_jax.typing import Array

F32 = jnp.float32
# Rows that gates take beside queries: a tile of the narrowest type.
GATE_ROWS = 16


def _kernel(call: Call, config: Config, first, inputs, outputs, scratch) -> None:
    """Grid (stacks of memories, token blocks): gradients of the weights add up over tokens."""
    q_ref, router, weights, y_ref, dy_ref, down_ref = inputs
    dq_ref, drouter, dweights = outputs
    own_ref, gates, dgates, dq, sums, ddescriptors, ranked, wide = scratch
    stack, block = pl.program_id(0), pl.program_id(1)
    seen = seen_by(call, config.tokens, first[0], block)
    store_gates(call.top_k, router, seen.each, seen.most, own_ref, gates)

    @pl.when(block == 0)
    def _() -> None:
        for total in (*sums, ddescriptors):
            total[...] = jnp.zeros_like(total)

    dq[...] = jnp.zeros_like(dq)
    dgates[...] = jnp.zeros_like(dgates)

    def through(place: Array, q: Array, dy: Array, gate: Array) -> tuple[Array, Array]:
        """Gradients of queries and gates; those of the weights are added to their sums."""
        maps = weights.w1[place], weights.w2[place]
        found = one_memory.read_back(call, config.narrow, *maps, q, dy, gate)
        sums.w1[place] += found.w1
        sums.w2[place] += found.w2
        return found.q, found.gate

    def read(place: Array, memory: Array, tokens: pl.Slice) -> None:
        gate = gates[pl.ds(memory, 1), tokens]
        dq_part, dgate = through(place, q_ref[:, tokens], dy_ref[:, tokens], gate)
        dq[:, tokens] += dq_part
        if call.routed:
            dgates[pl.ds(place, 1), tokens] = dgate

    def read_columns(place: Array, memory: Array, columns: Array) -> None:
        wide[2 * call.head_dim :] = _split(call.dtype, gates[pl.ds(memory, 1), :])
        q, dy, gate = jnp.split(
            contract(wide[...], columns, (1, 1)), (call.head_dim, 2 * call.head_dim)
        )
        dq_part, dgate = through(
            place, q.astype(call.dtype), dy.astype(call.dtype), jnp.sum(gate, 0, keepdims=True)
        )
        back = jnp.concatenate([dq_part.astype(call.dtype), _split(call.dtype, dgate)])
        back = contract(back, columns, (1, 0))
        dq[...] += back[: call.head_dim]
        dgates[pl.ds(place, 1), :] += jnp.sum(back[call.head_dim :], 0, keepdims=True)

    here = (stack, config.resident_backward)
    # One memory at a time: its products hide their latencies among themselves.
    if ranked:
        store_ranks(seen.most, gates, *ranked)
        wide[: call.head_dim] = q_ref[...]
        wide[call.head_dim : 2 * call.head_dim] = dy_ref[...]
        slots = config.slots_backward
        each_selected(call, config, first[0], block, here, ranked, slots, read, read_columns)
    else:
        each_read(call, config, first[0], block, here, 1, read)
    dq_ref[...] = dq[...].astype(dq_ref.dtype)
    if call.routed:
        mixed = jnp.sum(dy_ref[...].astype(F32) * y_ref[...].astype(F32), 0, keepdims=True)
        add_router_gradient(
            *(stack, seen.most, router, own_ref[...], gates, dgates[...]),
            *(down_ref[...], mixed, drouter, ddescriptors),
        )

    @pl.when(block == pl.num_programs(1) - 1)
    def _() -> None:
        for ref, total in zip(dweights, sums, strict=True):
            ref[...] = total[...].astype(ref.dtype)
        if call.routed:
            drouter.descriptors[...] = ddescriptors[...]


def _split(dtype: jnp.dtype, line: Array) -> Array:
    """Rows of a type that add up to a line in float32."""
    high = line.astype(dtype).astype(F32)
    rest = jnp.zeros((GATE_ROWS - 2, line.shape[1]), F32)
    return jnp.concatenate([high, line - high, rest]).astype(dtype)


def backward(call, config, interpret, first, q, router, weights, y, dy, down) -> tuple:
    """Gradients of q, the router and the weights; see `differentiable`."""
    resident = config.resident_backward
    blocks, stacks = call.tokens // config.tokens, pl.cdiv(call.memories, resident)
    rows = stacks * resident
    tokens = pl.BlockSpec((call.head_dim, config.tokens), lambda s, i, _: (0, i))
    parts = pl.BlockSpec((None, call.head_dim, config.tokens), lambda s, i, _: (s, 0, i))
    line = pl.BlockSpec((1, config.tokens), lambda s, i, _: (0, i))
    whole = pl.BlockSpec((rows, call.head_dim), lambda s, i, _: (0, 0))
    some = pl.BlockSpec((resident, call.head_dim), lambda s, i, _: (s, 0))
    # A stack stays for all tokens: fetching the next one ahead is not worth a second buffer.
    memories = jax.tree.map(
        lambda w: pl.BlockSpec(
            (resident, *w.shape[1:]), lambda s, i, _: (s, 0, 0), pipeline_mode=pl.Buffered(1)
        ),
        weights,
    )
    partial = jax.ShapeDtypeStruct((stacks, *q.shape), q.dtype if stacks == 1 else F32)
    descriptors = jax.ShapeDtypeStruct((rows, call.head_dim), F32)
    online = jax.ShapeDtypeStruct((1, call.tokens), F32)
    block = (call.head_dim, config.tokens)
    wide = pltpu.VMEM((2 * call.head_dim + GATE_ROWS, config.tokens), call.dtype)
    return pl.pallas_call(
        functools.partial(_kernel, call, config),
        out_shape=(
            (
                partial,
                router and Router(partial, online, descriptors),
                jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), weights),
            ),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(stacks, blocks),
            in_specs=[
                (
                    *(tokens, router and Router(tokens, line, whole), memories),
                    *(router and tokens, tokens, router and line),
                )
            ],
            out_specs=((parts, router and Router(parts, line, some), memories),),
            scratch_shapes=[
                (
                    pltpu.VMEM((1, config.tokens), F32),
                    pltpu.VMEM((rows, config.tokens), F32),
                    pltpu.VMEM((resident, config.tokens), F32),
                    pltpu.VMEM(block, F32),
                    jax.tree.map(lambda w: pltpu.VMEM((resident, *w.shape[1:]), F32), weights),
                    pltpu.VMEM((resident, call.head_dim), F32),
                    ranked_shapes(config, config.slots_backward, rows),
                    wide if config.slots_backward else None,
                )
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=vmem_limit(this_chip())
        ),
        interpret=interpret,
        name="deep_read_backward",
    )(first, (q, prepared(router, rows), weights, y, dy, down))[0]
