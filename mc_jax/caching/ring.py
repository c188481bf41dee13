"""Memories that are passed on from device to device, so that none holds all of them.

A token's weights over the memories of all devices are known before any memory travels, for scores
need descriptors alone: the softmax over all is, for those of one device, a softmax whose online
logit stands for everything else. So a read of one device's memories is the read that kernels do.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.caching.context import Context
from mc_jax.caching.options import Options
from mc_jax.caching.router import gate_logits
from mc_jax.caching.segments import Grid, visible_slots
from mc_jax.kernels.deep_read import deep_read
from mc_jax.kernels.gates import Router, Scores, visible_memories
from mc_jax.kernels.linear_read import linear_read
from mc_jax.memory.network import MlpNetwork, MlpWeights, Network, Weights, accumulator
from mc_jax.typing import Array, Float, Int

# A logit that weighs nothing. Unlike an infinite one its gradient is a number where a token sees
# no memory of a device at all.
NOTHING = -1e30


class Gates(NamedTuple):
    """What weights over the memories of all devices are made of.

    Attributes:
      scores: router queries [head_dim, tokens], or scores by distance [distances, tokens].
      descriptors: of all memories [all memories, head_dim]; None for scores by distance.
      online: logits of the online memory.
      blocks: log of the sum of each device's exponential logits.
    """

    scores: Array
    descriptors: Array | None
    online: Float[Array, " tokens"]
    blocks: Float[Array, "devices tokens"]


@dataclasses.dataclass(frozen=True)
class Ring:
    """What is static about memories that lie on several devices, and how tokens score them.

    Attributes:
      options: static options.
      context: the devices.
      segments: of one device.
      segment_len: tokens of a segment.
    """

    options: Options
    context: Context
    segments: int
    segment_len: int

    def first_segment(self, source: Array) -> Array:
        """Segment of this device's first token, counted from the first one of device `source`."""
        return (self.context.index - source) * self.segments

    def logits(self, gates: Gates, selected: Array | None, source: Array) -> Array:
        """Logits [segments, tokens] of one device's memories; `NOTHING` for what is not read."""
        here = jnp.arange(gates.online.shape[0]) // self.segment_len + self.first_segment(source)
        visible, distance = visible_slots(self.options, here, self.segments)
        if gates.descriptors is None:
            scores = gates.scores
            logits = gate_logits(self.options, scores, scores, None, None, distance)[1]
        else:
            logits = self._rows(gates.descriptors, source) @ gates.scores
        if selected is not None:
            visible &= jnp.any(selected[:, None] == self._slots(source)[:, None], 0)
        return jnp.where(visible, logits, NOTHING)

    def select(self, gates: Gates, top_k: int) -> Int[Array, "top_k tokens"]:
        """The best memories of each token among those of all devices; of equal logits the older."""

        def add(best: tuple[Array, Array], source: Array) -> tuple[tuple[Array, Array], None]:
            logits = self.logits(gates, None, source)
            slots = jnp.broadcast_to(self._slots(source)[:, None], logits.shape)
            logits = jnp.concatenate([best[0], logits])
            slots = jnp.concatenate([best[1], slots])
            top, which = lax.top_k(logits.T, top_k)
            return (top.T, jnp.take_along_axis(slots, which.T, 0)), None

        shape = (top_k, gates.online.shape[0])
        none = jnp.full(shape, NOTHING, gates.online.dtype), jnp.full(shape, -1)
        return lax.stop_gradient(lax.scan(add, none, jnp.arange(self.context.size))[0][1])

    def router(self, gates: Gates, selected: Array | None, source: Array) -> Router | Scores:
        """What one device's memories are scored with, all other memories in the online logit."""
        own = (jnp.arange(self.context.size) == source)[:, None]
        rest = _log_sum(gates.online, jnp.where(own, NOTHING, gates.blocks))
        if selected is None and gates.descriptors is not None:
            return Router(gates.scores, rest, self._rows(gates.descriptors, source))
        return Scores(rest, self.logits(gates, selected, source))

    def _slots(self, source: Array) -> Array:
        """Which of all memories are a device's."""
        return source * self.segments + jnp.arange(self.segments)

    def _rows(self, descriptors: Array, source: Array) -> Array:
        return lax.dynamic_slice_in_dim(descriptors, source * self.segments, self.segments)


@dataclasses.dataclass(frozen=True)
class RingReader:
    """Constant segments, of which every device keeps its own memories (see `read.Reader`).

    Attributes:
      ring: what is static.
      kernel: implementation of the reads; None for the best.
      weights: this device's memories, leaves [segments, ...].
      gates: None where all weights are 1.
      selected: which memories each token reads [top_k, tokens]; None for all.
    """

    ring: Ring
    kernel: str | None
    weights: Weights
    gates: Gates | None
    selected: Int[Array, "top_k tokens"] | None

    def linear(self, name: str, x: Array) -> tuple[Array, Array]:
        """See `Reader`."""
        return self._read(linear_read, getattr(self.weights, name), x)

    def features(self, network: Network, x: Array) -> tuple[Array, Array]:
        """See `Reader`; of MLP memories."""
        assert isinstance(network, MlpNetwork)
        assert isinstance(self.weights, MlpWeights)
        read = functools.partial(
            deep_read, activation=network.activation, mem_norm=network.mem_norm
        )
        return self._read(read, self.weights, x)

    def total(self, x: Array) -> Array:
        """See `Reader`."""
        dtype, ring = accumulator(x.dtype), self.ring
        if self.gates is not None:
            return jnp.ones(x.shape[1], dtype)
        everything = ring.segments * ring.context.size
        first = ring.context.index * ring.segments
        visible = visible_memories(everything, x.shape[1], ring.segment_len, first)
        return 1 + jnp.sum(visible, 0, dtype=dtype)

    def _read(self, op: Callable, weights: Any, x: Array) -> tuple[Array, Array]:
        """The memories of all devices through `op`, and the online memory's gates."""
        ring, kernel = self.ring, self.kernel

        def read(weights: Any, local: Any, selected: Array | None, source: Array) -> Array:
            x, gates = local
            y, _ = op(
                x,
                weights,
                None if gates is None else ring.router(gates, selected, source),
                segment_len=ring.segment_len,
                first_segment=ring.first_segment(source),
                implementation=kernel,
            )
            return y.astype(accumulator(x.dtype))

        travelling = jax.tree.map(lambda w: w.astype(x.dtype), weights)
        y = sum_over_devices(ring.context, read, travelling, (x, self.gates), self.selected)
        own = jnp.ones(x.shape[1], accumulator(x.dtype))
        if self.gates is not None:
            own = jnp.exp(self.gates.online - _log_sum(self.gates.online, self.gates.blocks))
        return y.astype(x.dtype), own


def ring_reader(
    grid: Grid,
    scores: Array | None,
    online: Array | None,
    weights: Weights,
    descriptors: Array | None,
    kernel: str | None,
) -> RingReader:
    """Reader of memories of which this device has its own.

    Args:
      grid: where this device's tokens lie, with its `context`.
      scores: see `Gates`; None where all weights are 1.
      online: logits of the online memory; None with `scores`.
      weights: this device's memories [segments, ...].
      descriptors: their descriptors, if gates read content.
      kernel: implementation of the reads.
    """
    assert grid.context is not None
    ring = Ring(grid.options, grid.context, grid.segments, grid.block_len)
    if scores is None or online is None:
        return RingReader(ring, kernel, weights, None, None)
    # No block is known yet.
    gates = Gates(scores, grid.context.gather(descriptors), online, online[None][:0])
    selected = None
    if grid.options.selected is not None:
        selected = ring.select(gates, grid.options.selected)

    # One device's logits at a time: those of all would be the largest array.
    @jax.checkpoint
    def log_sum(source: Array) -> Array:
        return jax.nn.logsumexp(ring.logits(gates, selected, source), 0)

    blocks = lax.map(log_sum, jnp.arange(grid.context.size))
    return RingReader(ring, kernel, weights, gates._replace(blocks=blocks), selected)


def _log_sum(online: Array, blocks: Array) -> Array:
    return jax.nn.logsumexp(jnp.concatenate([online[None], blocks]), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sum_over_devices(
    context: Context, read: Callable, block: Any, local: Any, constant: Any
) -> Array:
    """`sum_s read(block of device s, local, constant, s)`; blocks travel once around.

    Its gradient travels around with the block, so that nothing of other devices is kept.

    Args:
      context: the devices.
      read: one device's part; closes over nothing that is traced.
      block: what travels.
      local: what stays.
      constant: integers that stay; no gradient.
    """
    y = read(block, local, constant, context.index)

    def hop(carry: tuple[Any, Array], turn: Array) -> tuple[tuple[Any, Array], None]:
        block = context.passed_on(carry[0])
        source = (context.index - turn) % context.size
        return (block, carry[1] + read(block, local, constant, source)), None

    return lax.scan(hop, (block, y), jnp.arange(1, context.size))[0][1]


def _forward(
    context: Context, read: Callable, block: Any, local: Any, constant: Any
) -> tuple[Array, Any]:
    return sum_over_devices(context, read, block, local, constant), (block, local, constant)


def _backward(context: Context, read: Callable, kept: Any, dy: Array) -> tuple[Any, Any, None]:
    block, local, constant = kept

    def gradient(block: Any, source: Array) -> Any:
        back = jax.vjp(lambda b, x: read(b, x, constant, source), block, local)[1]
        return jax.tree.map(lambda x: x.astype(accumulator(x.dtype)), back(dy))

    def hop(carry: Any, turn: Array) -> tuple[Any, None]:
        block, dblock = context.passed_on(carry[:2])
        more = gradient(block, (context.index - turn) % context.size)
        dblock, dlocal = jax.tree.map(jnp.add, (dblock, carry[2]), more)
        return (block, dblock, dlocal), None

    start = (block, *gradient(block, context.index))
    _, dblock, dlocal = lax.scan(hop, start, jnp.arange(1, context.size))[0]
    found = context.passed_on(dblock), dlocal
    return *jax.tree.map(lambda g, x: g.astype(x.dtype), found, (block, local)), None


sum_over_devices.defvjp(_forward, _backward)
