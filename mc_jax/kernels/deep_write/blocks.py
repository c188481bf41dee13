"""Blocks and references that the forward and the backward kernel of the write share."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mc_jax.kernels.deep_write.chunk import Affine, ChunkState, KeyProducts, Memory, Network, Tokens
from mc_jax.kernels.deep_write.config import Call, Config, Cost, spans
from mc_jax.typing import Array, Float

F32 = jnp.float32
Span = Callable[[Any], Any]


class Learned(NamedTuple):
    """The learned parts, float32."""

    weights: Memory
    affine: Affine | None


class Final(NamedTuple):
    """Where the sequence goes on, float32.

    Attributes:
      state: after the last token.
      anchor: weights at the start of the last chunk, if it is not full; else None.
    """

    state: ChunkState
    anchor: Memory | None


class Ends(NamedTuple):
    """Weights at the ends of segments, as callers have them."""

    w1: Float[Array, "heads segments head_dim hidden"]
    w2: Float[Array, "heads segments hidden head_dim"]


class Layout(NamedTuple):
    """How arrays are cut into blocks.

    The grid is (groups of heads, spans). A `Span` says which span a step of it works on, for the
    backward kernel goes from the last one to the first.
    """

    call: Call
    config: Config
    vmem_limit: int

    @property
    def grid(self) -> tuple[int, int]:
        """Groups of heads, which do not depend on each other, and spans, which do."""
        return self.call.heads // self.config.heads, spans(self.call, self.config)

    @property
    def network(self) -> Network:
        """The memory's static facts."""
        return Network(self.call.activation, self.call.dtype)

    @property
    def matrix(self) -> tuple[int, int]:
        """Shape of a head's weights of one linear map."""
        return self.call.head_dim, self.call.hidden

    def shape(self, *shape: int, dtype: jnp.dtype = F32) -> jax.ShapeDtypeStruct:
        """An array with this shape a head."""
        return jax.ShapeDtypeStruct((self.call.heads, *shape), dtype)

    def state(self, leaf: Any) -> ChunkState:
        """A state with the same thing at every leaf."""
        memory = Memory(leaf, leaf)
        return ChunkState(memory, memory if self.call.titans else None)

    def anchored(self, leaf: Any) -> Final:
        """A final state with the same thing at every leaf."""
        return Final(self.state(leaf), Memory(leaf, leaf) if self.call.ragged else None)

    def key_products(self) -> KeyProducts:
        """Room for products of the keys of a span's chunks."""
        config, call = self.config, self.call

        def room(width: int) -> Any:
            return pltpu.VMEM((config.span, config.heads, call.chunk_len, width), F32)

        wide = room(call.hidden)
        return KeyProducts(wide, room(call.head_dim) if call.inner_outputs else None, wide)

    def token_blocks(self, span: Span) -> Tokens:
        """Blocks of tokens and gates, and of their cotangents."""
        heads, chunk, size = self.config.heads, self.call.chunk_len, self.config.span
        x = pl.BlockSpec((heads, size * chunk, self.call.head_dim), lambda i, s: (i, span(s), 0))
        rows = (heads, size, self.call.gates, chunk)
        return Tokens(x, x, x, pl.BlockSpec(rows, lambda i, s: (i, span(s), 0, 0)))

    def whole_block(self, *shape: int, buffers: int) -> pl.BlockSpec:
        """Block of a head's whole array, which stays through all spans.

        Args:
          *shape: shape of a head's array.
          buffers: 1 spares room where the next heads' block need not come early.
        """
        mode = None if buffers == 2 else pl.Buffered(buffers)
        shape = (self.config.heads, *shape)
        return pl.BlockSpec(shape, lambda i, s: (i, 0, 0), pipeline_mode=mode)

    def learned_blocks(self, buffers: int) -> Learned:
        """Blocks of the learned parts and of their gradients."""
        matrix = self.whole_block(*self.matrix, buffers=buffers)
        row = self.whole_block(1, self.call.head_dim, buffers=buffers)
        return Learned(Memory(matrix, matrix), Affine(row, row) if self.call.layer_norm else None)

    def final_blocks(self, buffers: int) -> Final:
        """Blocks of the final state and of its cotangents."""
        return self.anchored(self.whole_block(*self.matrix, buffers=buffers))

    def end_blocks(self, span: Span) -> Ends:
        """Blocks of the segments' last weights and of their cotangents."""
        segment_spans = self._segment_spans

        def block(*shape: int) -> pl.BlockSpec:
            return pl.BlockSpec(
                (self.config.heads, None, *shape), lambda i, s: (i, span(s) // segment_spans, 0, 0)
            )

        return Ends(block(*self.matrix), block(*self.matrix[::-1]))

    def start_blocks(self, span: Span) -> ChunkState:
        """Blocks of the states at the starts of spans."""
        shape = (self.config.heads, None, *self.matrix)
        return self.state(pl.BlockSpec(shape, lambda i, s: (i, span(s), 0, 0)))

    def span_chunks(self, span: Array) -> int | Array:
        """Chunks of a span that hold a token."""
        if self.call.chunks % self.config.span == 0:
            return self.config.span
        return jnp.minimum(self.config.span, self.call.chunks - span * self.config.span)

    def starts_afresh(self, span: Array) -> Array:
        """Whether a span starts from the initial state."""
        return span % self._segment_spans == 0 if self.call.independent else span == 0

    def ends_segment(self, span: Array) -> Array:
        """Whether a span is the last of its segment."""
        return (span == self.grid[1] - 1) | ((span + 1) % self._segment_spans == 0)

    @property
    def _segment_spans(self) -> int:
        return self.call.segment_chunks // self.config.span

    def read_tokens(self, refs: Tokens, span: Array, chunk: Array) -> Tokens:
        """The tokens of one chunk of a span."""
        q, k, v = (self.read_rows(ref, span, chunk) for ref in refs[:3])
        return Tokens(q, k, v, refs.gates[:, chunk])

    def read_rows(self, ref: Any, span: Array, chunk: Array) -> Array:
        """One chunk [heads, chunk, head_dim] in float32; rows past the call's end are zero."""
        x = ref[:, self.rows(chunk), :].astype(F32)
        if not self.call.ragged:
            return x
        first = (span * self.config.span + chunk) * self.call.chunk_len
        row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        return jnp.where(first + row < self.call.length, x, 0)

    def rows(self, chunk: Array) -> Any:
        """Places of a chunk's tokens in a span's block."""
        size = self.call.chunk_len
        return pl.ds(pl.multiple_of(chunk * size, size), size)

    def pallas_call(self, kernel: Callable, cost: Cost, interpret: bool, **blocks: Any) -> Any:
        """`pl.pallas_call` with what both kernels share."""
        estimate = pl.CostEstimate(
            flops=cost.flops, transcendentals=0, bytes_accessed=cost.hbm_bytes
        )
        return pl.pallas_call(
            functools.partial(kernel, self),
            grid=self.grid,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=self.vmem_limit
            ),
            cost_estimate=estimate,
            interpret=interpret,
            **blocks,
        )


def load(ref: Any) -> Array:
    """All that a reference holds."""
    return ref[...]


def store(ref: Any, x: Array) -> None:
    """Set a reference."""
    ref[...] = x


def copy(ref: Any, other: Any) -> None:
    """Set a reference to what another holds."""
    ref[...] = other[...]


def add(ref: Any, x: Any) -> None:
    """Add an array, or what another reference holds, to a reference."""
    ref[...] += x[...]


def clear(ref: Any) -> None:
    """Set a reference to zero."""
    ref[...] = jnp.zeros_like(ref)


def start(state: ChunkState, weights: Memory) -> None:
    """Set a state to the initial weights without momentum."""
    jax.tree.map(copy, state.weights, weights)
    jax.tree.map(clear, state.momentum)
