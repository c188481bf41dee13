"""The TPU kernel of the write: heads side by side, chunk after chunk, the state in VMEM."""

from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl

from mc_jax.kernels.deep_write.blocks import (
    Ends,
    Final,
    Layout,
    Learned,
    copy,
    load,
    start,
    store,
)
from mc_jax.kernels.deep_write.chunk import ChunkState, Tokens, chunk_step
from mc_jax.kernels.deep_write.config import forward_cost
from mc_jax.typing import Array, Float


class Outputs(NamedTuple):
    """What the forward kernel gives.

    Attributes:
      features: of the online memory, typed as the tokens.
      ends: weights at the end of every segment.
      final: where the sequence goes on.
    """

    features: Float[Array, "heads length head_dim"]
    ends: Ends
    final: Final


def forward(
    layout: Layout, interpret: bool, keep_starts: bool, tokens: Tokens, learned: Learned
) -> tuple[Outputs, ChunkState | None]:
    """Run the kernel.

    Args:
      layout: the call and its blocks.
      interpret: run its steps on any device.
      keep_starts: write down the state at the start of every span.
      tokens: [heads, length, head_dim], and gates [heads, chunks, gates, chunk].
      learned: leaves [heads, ...].

    Returns:
      The outputs and the starts, leaves [heads, spans, head_dim, hidden], None unless asked for.
    """
    call = layout.call

    def span(s: Array) -> Array:
        return s

    w1, w2 = (call.segments, *layout.matrix), (call.segments, *layout.matrix[::-1])
    shapes = Outputs(
        layout.shape(call.length, call.head_dim, dtype=call.dtype),
        Ends(layout.shape(*w1, dtype=call.ends_dtype), layout.shape(*w2, dtype=call.ends_dtype)),
        layout.anchored(layout.shape(*layout.matrix)),
    )
    start_shapes = layout.state(layout.shape(layout.grid[1], *layout.matrix))
    blocks = Outputs(
        layout.token_blocks(span).q, layout.end_blocks(span), layout.final_blocks(buffers=2)
    )
    return layout.pallas_call(
        _kernel,
        forward_cost(call, layout.config, keep_starts),
        interpret,
        in_specs=(layout.token_blocks(span), layout.learned_blocks(buffers=1)),
        out_shape=(shapes, start_shapes if keep_starts else None),
        out_specs=(blocks, layout.start_blocks(span) if keep_starts else None),
        name="deep_write",
    )(tokens, learned)


def _kernel(
    layout: Layout, tokens: Tokens, learned: Learned, outputs: Outputs, starts: ChunkState | None
) -> None:
    """One span. The block of the final state stays in VMEM and holds the running one."""
    span = pl.program_id(1)
    state, anchor = outputs.final

    @pl.when(layout.starts_afresh(span))
    def _():
        start(state, learned.weights)

    if starts is not None:
        jax.tree.map(copy, starts, state)

    def step(chunk: Array, _: Any) -> None:
        # Of the chunks that leave an anchor the last one's stays.
        if anchor is not None:
            jax.tree.map(copy, anchor, state.weights)
        features, after = chunk_step(
            layout.network,
            jax.tree.map(load, learned.affine),
            jax.tree.map(load, state),
            layout.read_tokens(tokens, span, chunk),
        )
        outputs.features[:, layout.rows(chunk), :] = features.astype(layout.call.dtype)
        jax.tree.map(store, state, after)

    lax.fori_loop(0, layout.span_chunks(span), step, None)

    @pl.when(layout.ends_segment(span))
    def _():
        w1, w2 = (ref[...].astype(layout.call.ends_dtype) for ref in state.weights)
        outputs.ends.w1[...], outputs.ends.w2[...] = w1, w2.swapaxes(1, 2)
