"""Memories that are passed on from device to device, so that none holds all of them.

A token's weights over the memories of all devices are known before any memory travels, for scores
need descriptors alone: the softmax over all is, for those of one run of the sequence, a softmax
whose online logit stands for everything else. So a read of one run's memories is the read that
kernels do. A device has one run of the sequence, or two (see `Context.placement`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.caching.context import Context
from mc_jax.caching.options import Options
from mc_jax.caching.router import gate_logits
from mc_jax.caching.segments import Grid, visible_slots
from mc_jax.kernels.deep_read import deep_read
from mc_jax.kernels.gates import Router, Scores
from mc_jax.kernels.linear_read import linear_read
from mc_jax.kernels.scores import score
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
      blocks: log of the sum of each run's exponential logits.
    """

    scores: Array
    descriptors: Array | None
    online: Float[Array, " tokens"]
    blocks: Float[Array, "runs tokens"]


class Places(NamedTuple):
    """Where this device's tokens are, and what they read.

    Attributes:
      segment: absolute index of each token's segment.
      selected: the memories that each token reads; None for all before its segment.
    """

    segment: Int[Array, " tokens"]
    selected: Int[Array, "top_k tokens"] | None


@dataclasses.dataclass(frozen=True)
class Ring:
    """What is static about memories that lie on several devices, and how tokens score them.

    Attributes:
      options: static options.
      context: the devices.
      segments: of one run.
      segment_len: tokens of a segment.
    """

    options: Options
    context: Context
    segments: int
    segment_len: int

    @property
    def runs(self) -> int:
        """Of all devices."""
        return self.context.runs * self.context.size

    def logits(self, gates: Gates, places: Places, run: Array) -> Array:
        """Logits [segments, tokens] of one run's memories; `NOTHING` for what is not read."""
        here = places.segment - run * self.segments
        visible, distance = visible_slots(self.options, here, self.segments)
        if gates.descriptors is None:
            scores = gates.scores
            logits = gate_logits(self.options, scores, scores, None, None, distance)[1]
        else:
            logits = score("md,dt->mt", self._rows(gates.descriptors, run), gates.scores)
        if places.selected is not None:
            visible &= jnp.any(places.selected[:, None] == self._slots(run)[:, None], 0)
        return jnp.where(visible, logits, NOTHING)

    def select(self, gates: Gates, places: Places, top_k: int) -> Int[Array, "top_k tokens"]:
        """The best memories of each token among those of all devices; of equal logits the older."""

        def add(best: tuple[Array, Array], run: Array) -> tuple[tuple[Array, Array], None]:
            logits = self.logits(gates, places, run)
            slots = jnp.broadcast_to(self._slots(run)[:, None], logits.shape)
            logits = jnp.concatenate([best[0], logits])
            slots = jnp.concatenate([best[1], slots])
            top, which = lax.top_k(logits.T, top_k)
            return (top.T, jnp.take_along_axis(slots, which.T, 0)), None

        shape = (top_k, gates.online.shape[0])
        none = jnp.full(shape, NOTHING, gates.online.dtype), jnp.full(shape, -1)
        return lax.stop_gradient(lax.scan(add, none, jnp.arange(self.runs))[0][1])

    def router(self, gates: Gates, places: Places, run: Array) -> Router | Scores:
        """What one run's memories are scored with, all other memories in the online logit."""
        own = (jnp.arange(self.runs) == run)[:, None]
        rest = _log_sum(gates.online, jnp.where(own, NOTHING, gates.blocks))
        if places.selected is None and gates.descriptors is not None:
            return Router(gates.scores, rest, self._rows(gates.descriptors, run))
        return Scores(rest, self.logits(gates, places, run))

    def _slots(self, run: Array) -> Array:
        """Which of all memories are a run's."""
        return run * self.segments + jnp.arange(self.segments)

    def _rows(self, descriptors: Array, run: Array) -> Array:
        return lax.dynamic_slice_in_dim(descriptors, run * self.segments, self.segments)


@dataclasses.dataclass(frozen=True)
class RingReader:
    """Constant segments, of which every device keeps its own memories (see `read.Reader`).

    Attributes:
      ring: what is static.
      kernel: implementation of the reads; None for the best.
      weights: this device's memories, leaves [segments of all its runs, ...].
      gates: None where all weights are 1.
      places: where the tokens are.
    """

    ring: Ring
    kernel: str | None
    weights: Weights
    gates: Gates | None
    places: Places

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
        # A token's own memory, and one for each segment before it.
        return (1 + self.places.segment).astype(dtype)

    def _read(self, op: Callable, weights: Any, x: Array) -> tuple[Array, Array]:
        """The memories of all devices through `op`, and the online memory's gates."""
        ring, kernel = self.ring, self.kernel
        runs, run_of = ring.context.runs, ring.context.run

        def read_run(weights: Any, local: Any, places: Places, run: Array) -> Array:
            """What one run's tokens read of the memories of run `run`."""
            first = places.segment[0] - run * ring.segments

            def read(weights: Any, local: Any) -> Array:
                x, gates = local
                y, _ = op(
                    x,
                    weights,
                    None if gates is None else ring.router(gates, places, run),
                    segment_len=ring.segment_len,
                    first_segment=first,
                    implementation=kernel,
                )
                return y.astype(accumulator(x.dtype))

            def nothing(weights: Any, local: Any) -> Array:
                y = jax.eval_shape(read, weights, local)
                return jnp.zeros(y.shape, y.dtype)

            sees_any = first + ring.segments > 1
            return lax.cond(sees_any, read, nothing, weights, local)

        def read(weights: Any, local: Any, places: Places, source: Array) -> Array:
            x, gates = local
            leaves, tree = jax.tree.flatten(weights)
            parts = zip(*(jnp.split(w, runs) for w in leaves), strict=True)
            blocks = [jax.tree.unflatten(tree, part) for part in parts]
            return jnp.concatenate(
                [
                    sum(
                        read_run(block, part, place, run_of(source, which))
                        for which, block in enumerate(blocks)
                    )
                    for part, place in _by_run(runs, x, gates, places)
                ],
                -1,
            )

        travelling = jax.tree.map(lambda w: w.astype(x.dtype), weights)
        y = sum_over_devices(ring.context, read, travelling, (x, self.gates), self.places)
        own = jnp.ones(x.shape[1], accumulator(x.dtype))
        if self.gates is not None:
            own = jnp.exp(self.gates.online - _log_sum(self.gates.online, self.gates.blocks))
        return y.astype(x.dtype), own


def _by_run(
    runs: int, x: Array, gates: Gates | None, places: Places
) -> Iterator[tuple[tuple[Array, Gates | None], Places]]:
    """Inputs and gates, and places, of the tokens of each run."""
    size = x.shape[-1] // runs
    for start in range(0, runs * size, size):

        def part(x: Array, start: int = start) -> Array:
            return x[..., start : start + size]

        some = None
        if gates is not None:
            some = gates._replace(
                scores=part(gates.scores), online=part(gates.online), blocks=part(gates.blocks)
            )
        yield (part(x), some), jax.tree.map(part, places)


def ring_reader(
    grid: Grid,
    scores: Array | None,
    online: Array | None,
    first: Array | None,
    weights: Weights,
    descriptors: Array | None,
    kernel: str | None,
) -> RingReader:
    """Reader of memories of which this device has its own.

    Args:
      grid: where this device's tokens lie, with its `context`.
      scores: see `Gates`; None where all weights are 1.
      online: logits of the online memory; None with `scores`.
      first: scores of the tokens that select for a block of tokens; None if each one selects.
      weights: this device's memories [segments, ...].
      descriptors: their descriptors, if gates read content.
      kernel: implementation of the reads.
    """
    assert grid.context is not None
    ring = Ring(grid.options, grid.context, grid.run_segments, grid.block_len)
    places = Places(grid.token_segment, None)
    if scores is None or online is None:
        return RingReader(ring, kernel, weights, None, places)
    # No block is known yet.
    gates = Gates(scores, grid.context.gather(descriptors), online, online[None][:0])
    if grid.options.selected is not None:
        every = grid.options.route_every
        ranked = gates if first is None else gates._replace(scores=first, online=online[::every])
        asking = Places(places.segment[::every], None)
        selected = ring.select(ranked, asking, grid.options.selected)
        places = Places(places.segment, jnp.repeat(selected, every, 1))

    # One run's logits at a time: those of all would be the largest array.
    @jax.checkpoint
    def log_sum(run: Array) -> Array:
        return jax.nn.logsumexp(ring.logits(gates, places, run), 0)

    blocks = lax.map(log_sum, jnp.arange(ring.runs))
    return RingReader(ring, kernel, weights, gates._replace(blocks=blocks), places)


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
