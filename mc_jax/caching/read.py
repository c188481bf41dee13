"""Aggregations: how a token's reads of several memories become one output."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from mc_jax.caching.options import Options
from mc_jax.kernels.block_read import block_read
from mc_jax.kernels.columns import scaled
from mc_jax.kernels.deep_read import deep_read
from mc_jax.kernels.gates import Router, Scores, visible_memories
from mc_jax.kernels.level_read import level_read
from mc_jax.kernels.linear_read import linear_read
from mc_jax.memory.network import (
    Linear,
    MlpNetwork,
    MlpWeights,
    Network,
    NormParams,
    Weights,
    accumulator,
    forward,
    linear_of,
)
from mc_jax.typing import Array, Float


class Reader(Protocol):
    """The cached memories as one call's tokens read them, and the gates they read them with."""

    def linear(self, name: str, x: Array) -> tuple[Array, Array]:
        """`sum_i gate_i W_i x` for the linear map `name`, and the online memory's gates."""
        ...

    def features(self, network: Network, x: Array) -> tuple[Array, Array]:
        """`sum_i gate_i features_i(x)`, and the online memory's gates."""
        ...

    def total(self, x: Array) -> Array:
        """The sum of all gates, the online memory's included."""
        ...


@dataclasses.dataclass(frozen=True)
class SharedReader:
    """Constant segments: one stack of memories for all tokens.

    Attributes:
      weights: leaves [memories, ...].
      router: what memories are scored with; None where all gates are 1.
      segment_len: tokens of a segment.
      first_segment: segment of the first token; the Python integer 0 where the sequence starts.
      top_k: memories that a token reads; None for all that it sees.
      kernel: implementation of `linear_read` and `deep_read`; None for the best.
    """

    weights: Weights
    router: Router | Scores | None
    segment_len: int
    first_segment: Array | int
    top_k: int | None
    kernel: str | None

    def linear(self, name: str, x: Array) -> tuple[Array, Array]:
        """See `Reader`."""
        return linear_read(
            x,
            getattr(self.weights, name),
            self.router,
            segment_len=self.segment_len,
            first_segment=self.first_segment,
            top_k=self.top_k,
            implementation=self.kernel,
        )

    def features(self, network: Network, x: Array) -> tuple[Array, Array]:
        """See `Reader`; of MLP memories, whose networks are not linear."""
        assert isinstance(network, MlpNetwork)
        assert isinstance(self.weights, MlpWeights)
        return deep_read(
            x,
            self.weights,
            self.router,
            activation=network.activation,
            mem_norm=network.mem_norm,
            segment_len=self.segment_len,
            first_segment=self.first_segment,
            top_k=self.top_k,
            implementation=self.kernel,
        )

    def total(self, x: Array) -> Array:
        """See `Reader`."""
        if self.router is not None:
            return jnp.ones(x.shape[1], accumulator(x.dtype))
        return 1 + jnp.sum(self._visible(x), 0, dtype=accumulator(x.dtype))

    def _visible(self, x: Array) -> Array:
        memories = jax.tree.leaves(self.weights)[0].shape[0]
        return visible_memories(memories, x.shape[1], self.segment_len, self.first_segment)


@dataclasses.dataclass(frozen=True)
class LevelReader:
    """Logarithmic segments: for each level one memory a segment.

    Attributes:
      weights: for each level leaves [segments, ...].
      own: gates of the online memory [tokens].
      gate: gates of each level's memory [levels, tokens].
      kernel: implementation of `level_read`; None for the best.
    """

    weights: list[Weights]
    own: Array
    gate: Array
    kernel: str | None

    def linear(self, name: str, x: Array) -> tuple[Array, Array]:
        """See `Reader`."""
        matrices = [getattr(weights, name) for weights in self.weights]
        return level_read(x, matrices, self.gate, implementation=self.kernel), self.own

    def features(self, network: Network, x: Array) -> tuple[Array, Array]:
        """See `Reader`; every segment reads its own bucket of each level."""

        def read(weights: Weights, x: Array) -> Array:
            return network.features(linear_of(weights, x.dtype), x)

        @jax.checkpoint
        def level(weights: Weights) -> Array:
            segments = jax.tree.leaves(weights)[0].shape[0]
            by_segment = x.reshape(x.shape[0], segments, -1)
            y = jax.vmap(read, in_axes=(0, 1), out_axes=1)(weights, by_segment)
            return y.reshape(-1, x.shape[1])

        gated = (g * level(weights) for g, weights in zip(self.gate, self.weights, strict=True))
        return sum(gated), self.own

    def total(self, x: Array) -> Array:
        """See `Reader`."""
        return self.own + jnp.sum(self.gate, 0)


@dataclasses.dataclass(frozen=True)
class BlockReader:
    """Constant segments of which blocks of tokens have selected what they read.

    Attributes:
      weights: leaves [memories, ...].
      memory: those that each block reads [reads, blocks].
      own: gates of the online memory [tokens].
      gate: gates of what is read [reads, tokens].
      kernel: implementation of `block_read`; None for the best.
    """

    weights: Weights
    memory: Array
    own: Array
    gate: Array
    kernel: str | None

    def linear(self, name: str, x: Array) -> tuple[Array, Array]:
        """See `Reader`."""
        return self._read(getattr(self.weights, name), None, x)

    def features(self, network: Network, x: Array) -> tuple[Array, Array]:
        """See `Reader`; of MLP memories, whose networks are not linear."""
        assert isinstance(network, MlpNetwork)
        return self._read(self.weights, network, x)

    def total(self, x: Array) -> Array:
        """See `Reader`."""
        return jnp.ones(x.shape[1], accumulator(x.dtype))

    def _read(self, weights: Any, network: MlpNetwork | None, x: Array) -> tuple[Array, Array]:
        arrays = x, weights, self.memory, self.gate
        return block_read(*arrays, network=network, implementation=self.kernel), self.own


@dataclasses.dataclass(frozen=True)
class RunReader:
    """Tokens that lie in several runs of the sequence, each with a reader of its own.

    Attributes:
      parts: the readers of the runs, which are side by side.
    """

    parts: list[Reader]

    def linear(self, name: str, x: Array) -> tuple[Array, Array]:
        """See `Reader`."""
        return self._join(lambda part, x: part.linear(name, x), x)

    def features(self, network: Network, x: Array) -> tuple[Array, Array]:
        """See `Reader`."""
        return self._join(lambda part, x: part.features(network, x), x)

    def total(self, x: Array) -> Array:
        """See `Reader`."""
        return self._join(lambda part, x: part.total(x), x)

    def _join(self, read: Callable[[Reader, Array], Any], x: Array) -> Any:
        pieces = jnp.split(x, len(self.parts), -1)
        found = [read(part, piece) for part, piece in zip(self.parts, pieces, strict=True)]
        return jax.tree.map(lambda *y: jnp.concatenate(y, -1), *found)


def mixes_maps(options: Options, network: Network) -> bool:
    """Whether memories are mixed inside their linear maps.

    Soup mixes there, at each layer's pre-activation, and reads once. Every other aggregation reads
    each memory and mixes outputs; for a matrix memory that is the same thing, and one read is
    cheaper.
    """
    return options.aggregation == "soup" or network.is_linear


def read_mixed_maps(
    network: Network,
    norm: NormParams | None,
    q: Float[Array, "head_dim tokens"],
    online: Linear,
    cached: Reader | None,
) -> Float[Array, "head_dim tokens"]:
    """Outputs of all tokens from one memory, whose maps are mixed of all (eq. 14).

    Args:
      network: the memory as a function of its linear maps.
      norm: affine of the memory norm.
      q: queries.
      online: linear maps of the online memory.
      cached: the cached memories; None if there are none to read.
    """

    def linear(name: str, x: Array) -> Array:
        if cached is None:
            return online(name, x)
        y, own = cached.linear(name, x.astype(q.dtype))
        return scaled(own, online(name, x)) + y

    return forward(network, linear, norm, q).astype(q.dtype)


def read_and_mix(
    network: Network,
    norm: NormParams | None,
    q: Float[Array, "head_dim tokens"],
    online: Float[Array, "head_dim tokens"],
    cached: Reader | None,
) -> Float[Array, "head_dim tokens"]:
    """Outputs of all tokens, mixed of what each memory gives (eqs. 7, 9 and 15).

    Args:
      network: the memory as a function of its linear maps.
      norm: affine of the memory norm.
      q: queries.
      online: features of the online memory.
      cached: the cached memories; None if there are none to read.
    """
    if cached is None:
        return network.output(norm, q, online, 1.0)
    features, own = cached.features(network, q)
    return network.output(norm, q, scaled(own, online) + features, cached.total(q))
