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
class RingReader:
    """Constant segments, of which every device keeps its own memories (see `read.Reader`).

    Attributes:
      options: static options.
      context: the devices.
      segments: of one device.
      segment_len: tokens of a segment.
      kernel: implementation of the reads; None for the best.
      weights: this device's memories, leaves [segments, ...].
      gates: None where all weights are 1.
      selected: which memories each token reads [top_k, tokens]; None for all.
    """

    options: Options
    context: Context
    segments: int
    segment_len: int
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
        dtype = accumulator(x.dtype)
        if self.gates is not None:
            return jnp.ones(x.shape[1], dtype)
        everything = self.segments * self.context.size
        first = self.context.index * self.segments
        visible = visible_memories(everything, x.shape[1], self.segment_len, first)
        return 1 + jnp.sum(visible, 0, dtype=dtype)

    def _read(self, op: Callable, weights: Any, x: Array) -> tuple[Array, Array]:
        """The memories of all devices through `op`, and the online memory's gates."""
        options, context = self.options, self.context
        segments, segment_len, kernel = self.segments, self.segment_len, self.kernel

        def read(weights: Any, local: Any, selected: Array | None, source: Array) -> Array:
            x, gates = local
            router = None
            if gates is not None:
                router = _of_block(options, context, segments, segment_len, gates, selected, source)
            y, _ = op(
                x,
                weights,
                router,
                segment_len=segment_len,
                first_segment=(context.index - source) * segments,
                implementation=kernel,
            )
            return y.astype(accumulator(x.dtype))

        travelling = jax.tree.map(lambda w: w.astype(x.dtype), weights)
        y = _sum_over_devices(context, read, travelling, (x, self.gates), self.selected)
        own = jnp.ones(x.shape[1], accumulator(x.dtype))
        if self.gates is not None:
            own = jnp.exp(self.gates.online - _log_sum(self.gates.online, self.gates.blocks))
        return y.astype(x.dtype), own


def ring_reader(
    grid: Grid,
    u: Array | None,
    router: Array | None,
    online: Array | None,
    weights: Weights,
    descriptors: Array | None,
    kernel: str | None,
) -> RingReader:
    """Reader of memories of which this device has its own.

    Args:
      grid: where this device's tokens lie, with its `context`.
      u: scores by distance [distances, tokens], where gates are those.
      router: else router queries [head_dim, tokens].
      online: logits of the online memory; None where all weights are 1.
      weights: this device's memories [segments, ...].
      descriptors: their descriptors, if gates read content.
      kernel: implementation of the reads.
    """
    options, context, gates, selected = grid.options, grid.context, None, None
    assert context is not None
    static = (options, context, grid.segments, grid.block_len)
    if online is not None:
        scores = u if router is None else router
        assert scores is not None
        gates = Gates(scores, context.gather(descriptors), online, online[None])
        if options.selected is not None:
            selected = lax.stop_gradient(_select(*static, gates, options.selected))

        # One device's logits at a time: those of all would be the largest array.
        @jax.checkpoint
        def log_sum(source: Array) -> Array:
            return jax.nn.logsumexp(_logits(*static, gates, selected, source), 0)

        gates = gates._replace(blocks=lax.map(log_sum, jnp.arange(context.size)))
    return RingReader(*static, kernel, weights, gates, selected)


def _log_sum(online: Array, blocks: Array) -> Array:
    return jax.nn.logsumexp(jnp.concatenate([online[None], blocks]), 0)


def _logits(
    options: Options,
    context: Context,
    segments: int,
    segment_len: int,
    gates: Gates,
    selected: Array | None,
    source: Array,
) -> Float[Array, "segments tokens"]:
    """Logits of one device's memories, `NOTHING` for those that a token does not read."""
    tokens = gates.online.shape[0]
    here = (context.index - source) * segments + jnp.arange(tokens) // segment_len
    visible, distance = visible_slots(options, here, segments)
    if gates.descriptors is None:
        logits = gate_logits(options, gates.scores, gates.scores, None, None, distance)[1]
    else:
        rows = lax.dynamic_slice_in_dim(gates.descriptors, source * segments, segments)
        logits = rows @ gates.scores
    if selected is not None:
        slots = source * segments + jnp.arange(segments)
        visible &= jnp.any(selected[:, None] == slots[:, None], 0)
    return jnp.where(visible, logits, NOTHING)


def _select(
    options: Options,
    context: Context,
    segments: int,
    segment_len: int,
    gates: Gates,
    top_k: int,
) -> Int[Array, "top_k tokens"]:
    """The best memories of each token among those of all devices; of equal logits the older."""

    def add(best: tuple[Array, Array], source: Array) -> tuple[tuple[Array, Array], None]:
        logits = _logits(options, context, segments, segment_len, gates, None, source)
        slots = jnp.broadcast_to((source * segments + jnp.arange(segments))[:, None], logits.shape)
        logits = jnp.concatenate([best[0], logits])
        slots = jnp.concatenate([best[1], slots])
        top, which = lax.top_k(logits.T, top_k)
        return (top.T, jnp.take_along_axis(slots, which.T, 0)), None

    tokens = gates.online.shape[0]
    none = jnp.full((top_k, tokens), NOTHING, gates.online.dtype), jnp.full((top_k, tokens), -1)
    return lax.scan(add, none, jnp.arange(context.size))[0][1]


def _of_block(
    options: Options,
    context: Context,
    segments: int,
    segment_len: int,
    gates: Gates,
    selected: Array | None,
    source: Array,
) -> Router | Scores:
    """What one device's memories are scored with, all other memories in the online logit."""
    others = jnp.where((jnp.arange(context.size) == source)[:, None], NOTHING, gates.blocks)
    rest = _log_sum(gates.online, others)
    if selected is None and gates.descriptors is not None:
        rows = lax.dynamic_slice_in_dim(gates.descriptors, source * segments, segments)
        return Router(gates.scores, rest, rows)
    static = (options, context, segments, segment_len)
    return Scores(rest, _logits(*static, gates, selected, source))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_over_devices(
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
    return _sum_over_devices(context, read, block, local, constant), (block, local, constant)


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


_sum_over_devices.defvjp(_forward, _backward)
