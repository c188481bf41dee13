"""The kernel that reads MLP memories on a TPU: the gated sum of `f_i(q)`.

Tokens lie in the lanes. A grid step takes a block of tokens: it scores all memories, keeps the
gates in VMEM, and goes through the memories that the block sees; `selection` says how top-k reads
leave most tokens out. Neither gates nor hidden layers exist in HBM.
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
from mc_jax.kernels.deep_read.selection import each_selected, store_ranks
from mc_jax.kernels.gates import Router
from mc_jax.kernels.reading import last_stack, prepared, seen_by
from mc_jax.kernels.tiles import contract
from mc_jax.memory.network import MlpWeights
from mc_jax.typing import Array

F32 = jnp.float32


def _kernel(call: Call, config: Config, first, inputs, outputs, scratch) -> None:
    """Grid (token blocks, stacks of memories)."""
    q_ref, router, weights = inputs
    y_ref, own_ref = outputs
    gates, half_q, total, ranked = scratch
    block, stack = pl.program_id(0), pl.program_id(1)

    @pl.when(stack == 0)
    def _() -> None:
        seen = seen_by(call, config.tokens, first[0], block)
        store_gates(call.top_k, router, seen.each, seen.most, own_ref, gates)
        if ranked:
            store_ranks(seen.most, gates, *ranked)
        half_q[...] = 0.5 * q_ref[...]
        total[...] = jnp.zeros_like(total)

    def gated(place: Array, half_q: Array, gate: Array | float) -> Array:
        maps = weights.w1[place], weights.w2[place]
        return one_memory.read(call, config.narrow, *maps, half_q, gate)

    def read(place: Array, memory: Array, tokens: pl.Slice) -> None:
        total[:, tokens] += gated(place, half_q[:, tokens], gates[pl.ds(memory, 1), tokens])

    def read_columns(place: Array, memory: Array, columns: Array) -> None:
        gathered = contract(half_q[...], columns, (1, 1)).astype(call.dtype)
        y = gated(place, gathered, 1.0).astype(call.dtype)
        total[...] += gates[pl.ds(memory, 1), :] * contract(y, columns, (1, 0))

    here = (stack, config.resident)
    if ranked:
        slots = config.slots
        each_selected(call, config, first[0], block, here, ranked, slots, read, read_columns)
    else:
        each_read(call, config, first[0], block, here, config.group, read)

    @pl.when(stack == pl.num_programs(1) - 1)
    def _() -> None:
        y_ref[...] = total[...].astype(y_ref.dtype)


def ranked_shapes(config: Config, slots: int | None, rows: int) -> tuple:
    """Scratch for so many memories' ranks and counts, where reads go by columns."""
    if slots is None:
        return ()
    return pltpu.VMEM((rows, config.tokens), F32), pltpu.SMEM((rows,), jnp.int32)


def forward(
    call: Call,
    config: Config,
    interpret: bool,
    first: Array,
    q: Array,
    router: Router | None,
    weights: MlpWeights,
) -> tuple[Array, Array]:
    """Cached part of the features [head_dim, tokens] and the online memory's gates [1, tokens]."""
    blocks, stacks = call.tokens // config.tokens, pl.cdiv(call.memories, config.resident)
    rows = stacks * config.resident
    last = functools.partial(last_stack, call, config.tokens, config.resident)
    tokens = pl.BlockSpec((call.head_dim, config.tokens), lambda i, s, _: (0, i))
    line = pl.BlockSpec((1, config.tokens), lambda i, s, _: (0, i))
    whole = pl.BlockSpec((rows, call.head_dim), lambda i, s, _: (0, 0))
    memories = jax.tree.map(
        lambda w: pl.BlockSpec(
            (config.resident, *w.shape[1:]),
            lambda i, s, first: (jnp.minimum(s, last(first[0], i)), 0, 0),
        ),
        weights,
    )
    return pl.pallas_call(
        functools.partial(_kernel, call, config),
        out_shape=(
            (jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((1, call.tokens), F32)),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(blocks, stacks),
            in_specs=[(tokens, router and Router(tokens, line, whole), memories)],
            out_specs=((tokens, line),),
            scratch_shapes=[
                (
                    pltpu.VMEM((rows, config.tokens), F32),
                    pltpu.VMEM((call.head_dim, config.tokens), call.dtype),
                    pltpu.VMEM((call.head_dim, config.tokens), F32),
                    ranked_shapes(config, config.slots, rows),
                )
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem_limit(this_chip())
        ),
        interpret=interpret,
        name="deep_read_forward",
    )(first, (q, prepared(router, rows), weights))[0]
