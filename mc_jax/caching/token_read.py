"""How one token reads the online memory and the cached ones, for one head of one sequence.

`read_all` is what the equations print: every memory is read, every weight of a soup mixed.
`read_needed` gives the same and touches only the memories that the token reads, so that a token
costs what its memories cost, however much room the cache has.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.caching import placement, storage
from mc_jax.caching.blocks import block_gates, select
from mc_jax.caching.cache import Cache
from mc_jax.caching.options import Options
from mc_jax.caching.read import mixes_maps
from mc_jax.caching.router import RunningMean, gate_logits, gate_weights, router_queries
from mc_jax.caching.segments import visible_slots
from mc_jax.kernels.gates import Scores, selected_gates
from mc_jax.kernels.scores import score
from mc_jax.memory.network import DeepParams, Weights, accumulator, forward, linear_of
from mc_jax.memory.rule import Rule, norm_of
from mc_jax.typing import Array, Bool, Float, Int

# Memories that are read side by side, or not at all if no sequence's token sees any of them.
BLOCK = 16
# Name of the axis of sequences that callers map over.
SEQUENCES = "sequences"


@dataclasses.dataclass(frozen=True)
class Token:
    """One token that reads.

    Attributes:
      rule: update rule.
      options: static options.
      params: learned parts of the rule.
      q: its query [head_dim, 1].
      u: what the gate asks for.
    """

    rule: Rule
    options: Options
    params: DeepParams | None
    q: Array
    u: Array | None

    @property
    def dtype(self) -> jnp.dtype:
        """Type of gates and sums."""
        return accumulator(self.q.dtype)

    @property
    def router_queries(self) -> Array:
        """What it scores descriptors with [head_dim, 1]."""
        return router_queries(self.options, self.u, self.q, self.dtype)

    def read(self, weights: Weights) -> Array:
        """What one memory gives [head_dim, 1]."""
        linear = linear_of(weights, self.q.dtype)
        return forward(self.rule.network, linear, norm_of(self.params), self.q)

    def scores(self, cache: Cache) -> tuple[Scores | None, Bool[Array, "memories 1"]]:
        """Logits of the online and the cached memories, None where all weigh 1; which it sees."""
        options = self.options
        inside = cache.position - 1
        segment = inside // options.segment_len
        visible, distance = visible_slots(options, segment[None], cache.capacity)
        if not options.gated:
            return None, visible
        own = None
        if options.routed:
            assert cache.key_sum is not None
            own = RunningMean(cache.key_sum[:, None], inside % options.segment_len + 1)
        logits = gate_logits(options, self.u, self.q, own, cache.descriptors, distance)
        return Scores(*logits), visible

    def gates(
        self, cache: Cache, scores: Scores | None, visible: Bool[Array, "memories 1"]
    ) -> tuple[Float[Array, "1"], Float[Array, " memories"]]:
        """Weights of the online memory and of the cached ones."""
        if scores is None:
            return jnp.ones((1,), self.dtype), visible[:, 0].astype(self.dtype)
        ranked = None
        if cache.leader is not None:
            ranked = score("md,dt->mt", cache.descriptors, cache.leader[:, None])
        own, gate = gate_weights(self.options, scores.online, scores.cached, visible, ranked)
        return own, gate[:, 0]

    def selection(
        self, cache: Cache, scores: Scores, visible: Bool[Array, "memories 1"]
    ) -> tuple[Float[Array, "1"], Float[Array, "top_k 1"], Int[Array, "top_k 1"]]:
        """Weights of the online memory and of those that ssc selects, and which these are."""
        assert self.options.selected is not None
        if cache.leader is None:
            return selected_gates(scores, visible, self.options.selected)
        assert cache.descriptors is not None
        memory = select(self.options, cache.leader[:, None], cache.descriptors, visible)
        weighed = block_gates(self.router_queries, scores.online, cache.descriptors, memory)
        return *weighed, memory


def read_all(token: Token, cache: Cache) -> Float[Array, "head_dim 1"]:
    """Eqs. 7, 9, 14 to 17, over all memories."""
    if not cache.capacity:
        return token.read(cache.state.weights)
    memories = placement.fetch(_memories(cache))
    own, gate = token.gates(cache, *token.scores(cache))
    if token.options.aggregation == "soup":
        return token.read(_soup(cache, own, _mixed_weights(memories, gate)))
    return own * token.read(cache.state.weights) + _mixed_reads(token, memories, gate)


def read_needed(token: Token, cache: Cache) -> Float[Array, "head_dim 1"]:
    """Eqs. 7, 9, 14 to 17, over the memories whose weight may differ from 0."""
    options = token.options
    if not cache.capacity:
        return token.read(cache.state.weights)
    scores, visible = token.scores(cache)
    if scores is not None and options.selected is not None and options.selected < cache.capacity:
        return _read_selected(token, cache, *token.selection(cache, scores, visible))
    memories = placement.fetch(_memories(cache))
    own, gate = token.gates(cache, scores, visible)
    # A level of logarithmic segments is rarely empty.
    blocks = options.segmentation == "constant"
    total = functools.partial(_sum_by_blocks, visible=visible[:, 0]) if blocks else _sum_at_once
    # Mixing matrices is the same as mixing what they give, and goes through them once.
    if mixes_maps(options, token.rule.network):
        return token.read(_soup(cache, own, total(_mixed_weights, memories, gate)))
    reads = total(functools.partial(_mixed_reads, token), memories, gate)
    return own * token.read(cache.state.weights) + reads


def _read_selected(
    token: Token,
    cache: Cache,
    own: Float[Array, "1"],
    gate: Float[Array, "top_k 1"],
    best: Int[Array, "top_k 1"],
) -> Float[Array, "head_dim 1"]:
    """Eq. 17; arguments as `Token.selection` gives them."""
    # A memory that is none has weight 0, whatever is read in its place.
    chosen = [
        storage.as_floats(memory, token.dtype)
        for memory in placement.take(_memories(cache), best[:, 0])
    ]
    if token.rule.network.is_linear:
        # Mixed where they lie: collecting them first would copy them.
        mixed = jax.tree.map(lambda *w: sum(g * x for g, x in zip(gate, w, strict=True)), *chosen)
        return token.read(_soup(cache, own, mixed))
    reads = sum(g * token.read(weights) for g, weights in zip(gate, chosen, strict=True))
    return own * token.read(cache.state.weights) + reads


READS: dict[str, Callable[[Token, Cache], Array]] = {"recurrent": read_all, "decode": read_needed}


def _memories(cache: Cache) -> Weights:
    assert cache.memories is not None
    return cache.memories.weights


def _mixed_weights(memories: Weights, gate: Float[Array, " memories"]) -> Weights:
    floats = storage.as_floats(memories, gate.dtype)
    return jax.tree.map(lambda kept: jnp.tensordot(gate, kept, 1), floats)


def _mixed_reads(token: Token, memories: Weights, gate: Float[Array, " memories"]) -> Array:
    floats = storage.as_floats(memories, token.dtype)
    return jnp.sum(gate[:, None, None] * jax.vmap(token.read)(floats), 0)


def _soup(cache: Cache, own: Float[Array, "1"], mixed: Weights) -> Weights:
    """The online memory's weights and those mixed of the cached ones (eq. 14)."""
    return jax.tree.map(lambda online, kept: own * online + kept, cache.state.weights, mixed)


def _sum_at_once(mix: Callable, memories: Weights, gate: Array) -> Any:
    return mix(memories, gate)


def _sum_by_blocks(mix: Callable, memories: Weights, gate: Array, visible: Array) -> Any:
    """`mix(memories, gate)`, without the blocks of memories that no sequence's token sees."""
    capacity = gate.shape[0]
    size = min(BLOCK, capacity)

    def block(start: Array) -> Any:
        # The last block goes back as far as the capacity's end asks for.
        first = jnp.minimum(start, capacity - size)
        here = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, size), (memories, gate))
        new = first + jnp.arange(size) >= start
        return mix(here[0], jnp.where(new, here[1], 0))

    def step(total: Any, start: Array) -> tuple[Any, None]:
        seen = lax.pmax(visible[start].astype(jnp.int32), SEQUENCES) > 0
        added = lax.cond(seen, lambda t: jax.tree.map(jnp.add, t, block(start)), lambda t: t, total)
        return added, None

    starts = jnp.arange(0, capacity, size)
    shapes = jax.eval_shape(block, starts[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return lax.scan(step, zeros, starts)[0]
