"""Aggregations: how a token's reads of several memories become one output."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.caching.options import Options
from mc_jax.memory.network import Linear, Network, NormParams, Weights, forward, linear_of, matmul
from mc_jax.typing import Array, Float

Read = Callable[[Weights, Array], Array]


# Most groups of memories that a fresh sequence is read in: the tokens before a group are left out.
# With eight of them a ninth of the reads are of memories that a token does not see yet; without,
# half. Each is compiled by itself, so that a group of one memory would not be worth it.
GROUPS = 8

# Inputs of one product that reads several matrices at once, their gates folded into the inputs.
PRODUCT_WIDTH = 256


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

        def add(y: Array, memory: tuple[Weights, Array], x: Array) -> Array:
            weights, scale = memory
            return y + scale * read(weights, x)

        return self._over_groups(add, (self.weights, gate), x)

    def mix_linear(self, name: str, gate: Array, x: Array) -> Array:
        """`sum_i gate[i] W_i x` for the linear map `name`, several memories to a product."""

        def add(y: Array, block: tuple[Array, Array], x: Array) -> Array:
            weights, scale = block
            out = weights.shape[1]
            scaled = (scale[:, None] * x).reshape(-1, x.shape[1])
            return y + matmul(weights.swapaxes(0, 1).reshape(out, -1), scaled, x.dtype)

        at_once = max(1, PRODUCT_WIDTH // x.shape[0])
        return self._over_groups(add, (getattr(self.weights, name), gate), x, at_once)

    def _over_groups(self, add: Callable, memories: Any, x: Array, at_once: int = 0) -> Array:
        """Sum over all memories; each group is read by the tokens that may see it.

        Args:
          add: adds one memory's read, or a block's, to the outputs.
          memories: weights [memories, ...] and gates [memories, tokens].
          x: inputs [in, tokens].
          at_once: memories of a block; 0 for one memory without the block's axis.
        """
        per_group = max(2, -(-self.count // GROUPS)) if self.stride else self.count
        y: Array = jnp.zeros(())
        for start in range(0, self.count, per_group):
            first = (start + 1) * self.stride
            weights, gate = jax.tree.map(lambda a, s=start: a[s : s + per_group], memories)
            part = _scan_memories(add, (weights, gate[:, first:]), x[:, first:], at_once)
            y = y + jnp.pad(part, ((0, 0), (first, 0)))
        return y


def _scan_memories(add: Callable, memories: Any, x: Array, at_once: int) -> Array:
    """Outputs [out, tokens]: a scan over memories or blocks of them."""
    if at_once:
        count = memories[1].shape[0]
        blocks = -(-count // at_once)
        size = -(-count // blocks)

        def block(a: Array) -> Array:
            a = jnp.pad(a, [(0, blocks * size - count)] + [(0, 0)] * (a.ndim - 1))
            return a.reshape(blocks, size, *a.shape[1:])

        memories = jax.tree.map(block, memories)

    # Rematerialised: the reads of all memories at once would be the largest array of all.
    @jax.checkpoint
    def step(y: Array, memory: Any) -> tuple[Array, None]:
        return add(y, memory, x), None

    first = jax.tree.map(lambda a: a[0], memories)
    start = jnp.zeros(jax.eval_shape(lambda m: add(0.0, m, x), first).shape, memories[1].dtype)
    if memories[1].shape[0] == 1:
        return step(start, first)[0]
    return lax.scan(step, start, memories)[0]


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

    def mix_linear(self, name: str, gate: Array, x: Array) -> Array:
        """As `SharedSlots.mix_linear`."""
        return self.mix(lambda weights, x: linear_of(weights, x.dtype)(name, x), gate, x)


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
        return own_gate * forward(network, online, norm, q)
    if options.aggregation == "soup" or network.is_linear:

        def linear(name: str, x: Array) -> Array:
            cached = slots.mix_linear(name, gate, x.astype(dtype))
            return own_gate * online(name, x) + cached

        return forward(network, linear, norm, q)
    features = slots.mix(lambda w, x: network.features(linear_of(w, dtype), x), gate, q)
    features = own_gate * network.features(online, q) + features
    return network.output(norm, q, features, own_gate + jnp.sum(gate, 0))
