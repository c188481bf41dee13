"""The gradient of the write on a TPU: from the last span to the first, each computed again."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mc_jax.kernels.deep_write.blocks import (
    F32,
    Layout,
    Learned,
    add,
    clear,
    copy,
    load,
    start,
    store,
)
from mc_jax.kernels.deep_write.chunk import (
    ChunkState,
    KeyProducts,
    Tokens,
    chunk_step,
    key_products,
    next_state,
)
from mc_jax.kernels.deep_write.config import backward_cost
from mc_jax.kernels.deep_write.forward import Outputs
from mc_jax.typing import Array

# Chunks that the way back goes through without a loop in bfloat16, which hides more latencies; it
# takes long to compile, and in float32 too much VMEM.
MOST_UNROLLED = 2


def backward(
    layout: Layout,
    interpret: bool,
    tokens: Tokens,
    learned: Learned,
    starts: ChunkState | None,
    cotangents: Outputs,
) -> tuple[Tokens, Learned]:
    """Run the kernel.

    Args:
      layout: the call and its blocks.
      interpret: run its steps on any device.
      tokens: what the forward kernel took.
      learned: likewise.
      starts: states at the starts of spans; None if all start from the initial state.
      cotangents: of what the forward kernel gave.

    Returns:
      Cotangents of tokens and learned parts.
    """
    matrices = (layout.config.heads, *layout.matrix)

    def span(s: Array) -> Array:
        return layout.grid[1] - 1 - s

    return layout.pallas_call(
        _kernel,
        backward_cost(layout.call, layout.config),
        interpret,
        in_specs=(
            layout.token_blocks(span),
            layout.learned_blocks(buffers=1),
            None if starts is None else layout.start_blocks(span),
            Outputs(
                layout.token_blocks(span).q,
                layout.end_blocks(span),
                layout.final_blocks(buffers=1),
            ),
        ),
        out_shape=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (tokens, learned)),
        out_specs=(layout.token_blocks(span), layout.learned_blocks(buffers=1)),
        scratch_shapes=(
            layout.state(pltpu.VMEM((layout.config.span, *matrices), F32)),
            layout.state(pltpu.VMEM(matrices, F32)),
            layout.key_products(),
        ),
        name="deep_write_backward",
    )(tokens, learned, starts, cotangents)


def _kernel(
    layout: Layout,
    tokens: Tokens,
    learned: Learned,
    starts: ChunkState | None,
    cotangents: Outputs,
    dtokens: Tokens,
    dlearned: Learned,
    chunk_starts: ChunkState,
    dstate: ChunkState,
    products: KeyProducts,
) -> None:
    """One span: forward through its chunks for their starts, then back through them.

    `products` holds what the way forward leaves to the way back. `dstate` goes with the state from
    the end of the call to its start; the gradients of the learned parts are summed up in their
    blocks, which stay in VMEM.
    """
    span = layout.grid[1] - 1 - pl.program_id(1)
    chunks = layout.span_chunks(span)
    last = chunks - 1
    _enter(layout, span, cotangents, dlearned, dstate)
    affine = jax.tree.map(load, learned.affine)
    first = jax.tree.map(lambda ref: ref.at[0], chunk_starts)
    if starts is None:
        start(first, learned.weights)
    else:
        jax.tree.map(copy, first, starts)

    def state_before(chunk: Array) -> ChunkState:
        return jax.tree.map(lambda ref: ref[chunk], chunk_starts)

    def replay(chunk: Array, _: Any) -> None:
        x = layout.read_tokens(tokens, span, chunk)
        after, keys = next_state(layout.network, affine, state_before(chunk), x)
        jax.tree.map(lambda ref, y: store(ref.at[chunk + 1], y), chunk_starts, after)
        jax.tree.map(lambda ref, y: store(ref.at[chunk], y), products, keys)

    def step_back(i: Array, _: Any) -> None:
        chunk = last - i
        known = jax.tree.map(lambda ref: ref[chunk], products)
        _, gradient = jax.vjp(
            functools.partial(chunk_step, layout.network, known=known),
            affine,
            state_before(chunk),
            layout.read_tokens(tokens, span, chunk),
        )
        dfeatures = layout.read_rows(cotangents.features, span, chunk)
        daffine, dbefore, dx = gradient((dfeatures, jax.tree.map(load, dstate)))
        jax.tree.map(add, dlearned.affine, daffine)
        jax.tree.map(store, dstate, dbefore)
        for ref, x in zip(dtokens[:3], dx[:3], strict=True):
            ref[:, layout.rows(chunk), :] = x.astype(ref.dtype)
        dtokens.gates[:, chunk] = dx.gates
        if layout.call.ragged:

            @pl.when(span * layout.config.span + chunk == layout.call.chunks - 1)
            def _():
                jax.tree.map(add, dstate.weights, cotangents.final.anchor)

    lax.fori_loop(0, last, replay, None)
    x = layout.read_tokens(tokens, span, last)
    keys = key_products(layout.network, affine, state_before(last), x)
    jax.tree.map(lambda ref, y: store(ref.at[last], y), products, keys)
    narrow = layout.call.dtype == jnp.bfloat16
    unroll = narrow and isinstance(chunks, int) and chunks <= MOST_UNROLLED
    lax.fori_loop(0, chunks, step_back, None, unroll=unroll)

    @pl.when(layout.starts_afresh(span))
    def _():
        jax.tree.map(add, dlearned.weights, dstate.weights)


def _enter(
    layout: Layout, span: Array, cotangents: Outputs, dlearned: Learned, dstate: ChunkState
) -> None:
    """Gradients as they are at the end of a span."""
    last = span == layout.grid[1] - 1
    ends_segment = layout.ends_segment(span)

    @pl.when(last)
    def _():
        jax.tree.map(clear, dlearned)
        jax.tree.map(copy, dstate, cotangents.final.state)

    # What follows an independent segment does not depend on it.
    @pl.when(layout.call.independent & ends_segment & jnp.logical_not(last))
    def _():
        jax.tree.map(clear, dstate)

    @pl.when(ends_segment)
    def _():
        dstate.weights.w1[...] += cotangents.ends.w1[...].astype(F32)
        dstate.weights.w2[...] += cotangents.ends.w2[...].swapaxes(1, 2).astype(F32)
