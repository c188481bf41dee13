"""Aggregations: how a token's reads of several memories become one output."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.caching.options import Options
from mc_jax.memory.network import Linear, Network, NormParams, Weights, linear_of
from mc_jax.typing import Array, Float

Read = Callable[[Weights, Array], Array]


@dataclasses.dataclass(frozen=True)
class SharedSlots:
    """Constant segments: one stack of memories [memories, ...] for all tokens."""

    weights: Weights | None
    count: int

    def mix(self, read: Read, gate: Array, x: Array) -> Array:
        """`sum_i gate[..., i] read(memory_i, x)`, one memory at a time.

        Args:
          read: reads one memory with inputs [..., in].
          gate: weights [segments, tokens, memories], 0 where a memory is not visible.
          x: inputs [segments, tokens, in].
        """

        # Rematerialised: the reads of all memories at once would be the largest array of all.
        @jax.checkpoint
        def add(y: Array, memory: tuple[Weights, Array]) -> tuple[Array, None]:
            weights, scale = memory
            return y + scale[..., None] * read(weights, x), None

        one = jax.tree.map(lambda w: w[0], self.weights)
        start = jnp.zeros(jax.eval_shape(read, one, x).shape, gate.dtype)
        return lax.scan(add, start, (self.weights, jnp.moveaxis(gate, -1, 0)))[0]


@dataclasses.dataclass(frozen=True)
class LevelSlots:
    """Logarithmic segments: for each level one memory a segment, leaves [segments, ...]."""

    weights: list[Weights]
    count: int

    def mix(self, read: Read, gate: Array, x: Array) -> Array:
        """As `SharedSlots.mix`, with every segment reading its own bucket of each level."""
        reads = [jax.checkpoint(jax.vmap(read))(weights, x) for weights in self.weights]
        return sum(gate[..., level, None] * y for level, y in enumerate(reads))


def read_memories(
    options: Options,
    network: Network,
    norm: NormParams | None,
    q: Float[Array, "segments tokens head_dim"],
    online: Linear,
    online_gate: Float[Array, "segments tokens"],
    slots: SharedSlots | LevelSlots,
    gate: Float[Array, "segments tokens memories"],
) -> Float[Array, "segments tokens head_dim"]:
    """Outputs of all tokens (eqs. 7, 9, 14 and 15).

    Soup mixes inside the linear maps, at each layer's pre-activation, and reads once. Every other
    aggregation reads each memory and mixes outputs; for a matrix memory that is the same thing,
    and one read is cheaper.
    """
    dtype = q.dtype
    own = online_gate[..., None]
    if not slots.count:
        return own * network.forward(online, norm, q)
    if options.aggregation == "soup" or network.is_linear:

        def linear(name: str, x: Array) -> Array:
            cached = slots.mix(lambda w, x: linear_of(w, dtype)(name, x), gate, x)
            return own * online(name, x) + cached

        return network.forward(linear, norm, q)
    cached = slots.mix(lambda w, x: network.forward(linear_of(w, dtype), norm, x), gate, q)
    return own * network.forward(online, norm, q) + cached
