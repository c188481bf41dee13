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


# Groups of memories that a fresh sequence is read in: the tokens before a group are left out. With
# four of them a tenth of the reads are of memories that a token does not see yet; without, half.
GROUPS = 4


@dataclasses.dataclass(frozen=True)
class SharedSlots:
    """Constant segments: one stack of memories for all tokens.

    Attributes:
      weights: leaves [count, ...].
      count: memories.
      stride: tokens between two memories if memory i is first seen by token `(i + 1) * stride`;
        0 if every memory may be seen by every token.
    """

    weights: Weights | None
    count: int
    stride: int = 0

    def mix(self, read: Read, gate: Array, x: Array) -> Array:
        """`sum_i gate[i] read(memory_i, x)`, one memory at a time.

        Args:
          read: reads one memory with inputs [in, tokens].
          gate: weights [memories, tokens], 0 where a memory is not visible.
          x: inputs [in, tokens].
        """
        per_group = -(-self.count // GROUPS) if self.stride else self.count
        y = jnp.zeros((1, 1), gate.dtype)
        for start in range(0, self.count, per_group):
            group = slice(start, start + per_group)
            first = (start + 1) * self.stride
            weights = jax.tree.map(lambda w, group=group: w[group], self.weights)
            part = _mix_all(read, weights, gate[group, first:], x[:, first:])
            y = y + jnp.pad(part, ((0, 0), (first, 0)))
        return y


def _mix_all(read: Read, weights: Weights, gate: Array, x: Array) -> Array:
    """A scan over memories, each read by all tokens."""

    # Rematerialised: the reads of all memories at once would be the largest array of all.
    @jax.checkpoint
    def add(y: Array, memory: tuple[Weights, Array]) -> tuple[Array, None]:
        one, scale = memory
        return y + scale * read(one, x), None

    first = jax.tree.map(lambda w: w[0], weights)
    start = jnp.zeros(jax.eval_shape(read, first, x).shape, gate.dtype)
    return lax.scan(add, start, (weights, gate))[0]


@dataclasses.dataclass(frozen=True)
class LevelSlots:
    """Logarithmic segments: for each level one memory a segment, leaves [segments, ...]."""

    weights: list[Weights]
    count: int

    def mix(self, read: Read, gate: Array, x: Array) -> Array:
        """As `SharedSlots.mix`, with every segment reading its own bucket of each level."""

        @jax.checkpoint
        def level(weights: Weights) -> Array:
            segments = jax.tree.leaves(weights)[0].shape[0]
            by_segment = x.reshape(x.shape[0], segments, -1)
            y = jax.vmap(read, in_axes=(0, 1), out_axes=1)(weights, by_segment)
            return y.reshape(-1, x.shape[1])

        return sum(g * level(weights) for g, weights in zip(gate, self.weights, strict=True))


def read_memories(
    options: Options,
    network: Network,
    norm: NormParams | None,
    q: Float[Array, "head_dim tokens"],
    online: Linear,
    own_gate: Float[Array, " tokens"],
    slots: SharedSlots | LevelSlots,
    gate: Float[Array, "memories tokens"],
) -> Float[Array, "head_dim tokens"]:
    """Outputs of all tokens (eqs. 7, 9, 14 and 15).

    Soup mixes inside the linear maps, at each layer's pre-activation, and reads once. Every other
    aggregation reads each memory and mixes outputs; for a matrix memory that is the same thing,
    and one read is cheaper.
    """
    dtype = q.dtype
    if not slots.count:
        return own_gate * network.forward(online, norm, q)
    if options.aggregation == "soup" or network.is_linear:

        def linear(name: str, x: Array) -> Array:
            cached = slots.mix(lambda w, x: linear_of(w, dtype)(name, x), gate, x)
            return own_gate * online(name, x) + cached

        return network.forward(linear, norm, q)
    cached = slots.mix(lambda w, x: network.forward(linear_of(w, dtype), norm, x), gate, q)
    return own_gate * network.forward(online, norm, q) + cached
