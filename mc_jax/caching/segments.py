"""Where tokens lie among segments and chunks, and which memories a segment sees."""

import dataclasses

import jax.numpy as jnp
from jax import lax

from mc_jax.caching.context import Context
from mc_jax.caching.options import Options
from mc_jax.typing import Array


def capacity_for(length: int, segment_len: int, segmentation: str) -> int:
    """Memory slots that a sequence of `length` tokens fills.

    One for each completed segment, or with logarithmic segmentation one for each binary digit of
    their number.
    """
    completed = length // segment_len
    return completed.bit_length() if segmentation == "logarithmic" else completed


def visible_slots(options: Options, segment: Array, capacity: int) -> tuple[Array, Array]:
    """Which memory slots tokens read.

    Args:
      options: static options.
      segment: absolute index of each token's segment [tokens].
      capacity: number of slots.

    Returns:
      Whether a slot is visible, bool [capacity, tokens], and its distance as position gates count
      it: segments back, or one plus the level of a logarithmic bucket.
    """
    slot = jnp.arange(capacity)[:, None]
    if options.segmentation == "logarithmic":
        digits = (segment >> slot) & 1 == 1
        return digits, jnp.broadcast_to(slot + 1, digits.shape)
    return slot < segment, jnp.maximum(segment - slot, 1)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A call's tokens laid out on the grid of segments and chunks.

    The grid is counted from the start of the sequence. A call that continues a cache starts
    anywhere in a segment: its tokens are moved `offset` places to the right in a buffer of whole
    segments, and the places that hold no token are neutral.

    Attributes:
      options: static options.
      length: tokens of the call.
      position: tokens before the call; the Python integer 0 for a fresh sequence, else an array.
      count: how many of the call's tokens are there, where the rest is padding; None for all.
      context: the devices that a fresh sequence is split over, of which this one has `length`
        tokens in one run or more; None if it has all.
    """

    options: Options
    length: int
    position: int | Array
    count: Array | None = None
    context: Context | None = None

    @property
    def fresh(self) -> bool:
        """Whether the sequence starts here, so that where tokens lie on the grid is static."""
        return isinstance(self.position, int)

    @property
    def block_len(self) -> int:
        """Places of a segment in the buffer; a single short segment is not padded to its end."""
        if self.fresh and self.length < self.options.block_len:
            return -(-self.length // self.options.chunk_len) * self.options.chunk_len
        return self.options.block_len

    @property
    def segments(self) -> int:
        """Segments in the buffer."""
        return -(-(self.length + (0 if self.fresh else self.block_len - 1)) // self.block_len)

    @property
    def all_segments(self) -> int:
        """Segments of all devices."""
        return self.segments * (1 if self.context is None else self.context.size)

    @property
    def chunks(self) -> int:
        """Chunks of a segment."""
        return self.block_len // self.options.chunk_len

    @property
    def offset(self) -> int | Array:
        """Place of the call's first token in the buffer."""
        return self.position % self.options.block_len

    @property
    def runs(self) -> int:
        """Runs of segments that follow each other in the sequence."""
        return 1 if self.context is None else self.context.runs

    @property
    def run_segments(self) -> int:
        """Segments of a run."""
        return self.segments // self.runs

    @property
    def firsts(self) -> list[int | Array]:
        """Absolute index of each run's first segment."""
        if self.context is None:
            return [self.position // self.options.block_len]
        runs = (self.context.run(self.context.index, which) for which in range(self.runs))
        return [run * self.run_segments for run in runs]

    @property
    def first(self) -> int | Array:
        """Absolute index of the buffer's first segment."""
        return self.firsts[0]

    @property
    def end(self) -> int | Array:
        """Place after the call's last token in the buffer."""
        return self.offset + (self.length if self.count is None else self.count)

    @property
    def ended(self) -> int | Array:
        """Segments of the buffer that are complete when the call ends."""
        return self.end // self.options.block_len

    @property
    def index(self) -> Array:
        """Absolute indices of the buffer's segments [segments]."""
        steps = jnp.arange(self.run_segments)
        return jnp.concatenate([first + steps for first in self.firsts])

    @property
    def valid(self) -> Array:
        """Whether a place holds a token of this call, bool [tokens]."""
        place = jnp.arange(self.tokens)
        return (place >= self.offset) & (place < self.end)

    @property
    def chunk_complete(self) -> Array:
        """Whether this call writes a chunk's last token, bool [segments, chunks]."""
        return self.by_chunk(self.valid)[:, :, -1]

    @property
    def segment_complete(self) -> Array:
        """Whether this call writes a segment's last token, bool [segments]."""
        return jnp.arange(self.segments) < self.ended

    @property
    def tokens(self) -> int:
        """Places of the buffer."""
        return self.segments * self.block_len

    @property
    def token_segment(self) -> Array:
        """Absolute index of the segment of every place [tokens]."""
        return jnp.repeat(self.index, self.block_len)

    def place(self, x: Array, before: Array | None = None) -> Array:
        """Buffer [..., tokens] with the call's tokens `x` [..., length] in their places.

        Args:
          x: tokens on the last axis.
          before: tokens [..., window] to put right before them; the buffer is that much longer.
        """
        size = self.tokens
        if before is not None:
            x = jnp.concatenate([before.astype(x.dtype), x], -1)
            size += before.shape[-1]
        if self.fresh:
            return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])
        buffer = jnp.zeros((*x.shape[:-1], size), x.dtype)
        return lax.dynamic_update_slice_in_dim(buffer, x, self.offset, -1)

    def take(self, x: Array) -> Array:
        """The call's tokens [..., length] out of a buffer [..., tokens]."""
        return lax.dynamic_slice_in_dim(x, self.offset, self.length, -1)

    def by_run(self, x: Array) -> list[Array]:
        """[..., tokens] as [..., tokens of a run] for each run."""
        return jnp.split(x, self.runs, -1)

    def by_segment(self, x: Array) -> Array:
        """[..., tokens] as [..., segments, block_len]."""
        return x.reshape(*x.shape[:-1], self.segments, self.block_len)

    def by_chunk(self, x: Array) -> Array:
        """[..., tokens] as [..., segments, chunks, chunk_len]."""
        return x.reshape(*x.shape[:-1], self.segments, self.chunks, self.options.chunk_len)

    def chunks_first(self, x: Array) -> Array:
        """[..., tokens] as [segments, chunks, ..., chunk_len]."""
        return jnp.moveaxis(self.by_chunk(x), (-3, -2), (0, 1))
