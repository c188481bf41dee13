"""Where the gates look: the weights with which each token of an example reads the memories."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mc_jax.caching import Options
from mc_jax.caching.router import RunningMean, gate_logits, gate_weights
from mc_jax.caching.segments import capacity_for, visible_slots
from mc_jax.errors import InputError
from mc_jax.model import ModelConfig, RouterInputs
from mc_jax.typing import Array, Float, PyTree


class GateMap(NamedTuple):
    """The gates of one layer for one example.

    Attributes:
      block: the layer's number among all blocks of the model.
      weights: [heads, length, 1 + memories], see `memory_gates`.
    """

    block: int
    weights: np.ndarray


def memory_gates(options: Options, inputs: RouterInputs) -> Float[Array, "heads length 1+memories"]:
    """Weights of the online memory (column 0) and of the cached ones for each token of an example.

    Cached memories are segments in their order, or with logarithmic segmentation levels: column
    1 + l is the bucket of 2^l segments, another one for every token's own prefix. A row adds up to
    1; a memory that a token does not see, or that ssc does not select for it, has weight 0.

    Args:
      options: of the layer's memories.
      inputs: of one example, without the axis of the batch: q and pooled [length, heads, head_dim].

    Raises:
      InputError: the aggregation has no gate.
    """
    if not options.gated:
        allowed = "grm | soup | ssc with a gate; others give every memory the weight 1"
        raise InputError("aggregation", options.aggregation, allowed)
    length = inputs.pooled.shape[0]
    # Whole segments; the places behind the example do not change what its tokens see.
    q, pooled, u = (_pad(x, -length % options.segment_len) for x in inputs)
    segment = jnp.arange(pooled.shape[0]) // options.segment_len
    # Nobody reads the memory of the last segment.
    count = capacity_for(length - 1, options.segment_len, options.segmentation)
    visible, distance = visible_slots(options, segment, count)

    def head(u: Array | None, q: Array, pooled: Array) -> Array:
        segments = pooled.astype(jnp.float32)
        segments = segments.reshape(-1, options.segment_len, pooled.shape[-1])
        sums = jnp.cumsum(segments, 1).reshape(pooled.shape).T
        counts = jnp.tile(jnp.arange(1, options.segment_len + 1), len(segments))
        own = RunningMean(sums, counts)
        means = jnp.mean(segments, 1)
        if options.segmentation == "logarithmic" and count:
            descriptors = _bucket_means(means, count)
        else:
            descriptors = means[:count]
        u = None if u is None else u.T
        scores = gate_logits(options, u, q.T, own, descriptors, distance)
        # The first token of a block selects for all of it.
        ranked = jnp.repeat(scores[1][:, :: options.route_every], options.route_every, 1)
        online, cached = gate_weights(options, *scores, visible, ranked)
        return jnp.concatenate([online[None], cached]).T[:length]

    # A temperature has one axis, that of the heads; everything else has it second.
    u_axis = None if u is None else min(u.ndim - 1, 1)
    return jax.vmap(head, (u_axis, 1, 1))(u, q, pooled)


def _pad(x: Any, places: int) -> Any:
    """Zeros behind the tokens of [length, heads, ...]; a temperature [heads] stays."""
    if x is None or x.ndim == 1:
        return x
    return jnp.pad(x, [(0, places)] + [(0, 0)] * (x.ndim - 1))


def _bucket_means(
    means: Float[Array, "segments head_dim"], levels: int
) -> Float[Array, "segments levels head_dim"]:
    """Mean of the segments in each level's bucket of each prefix, anything where it has none."""
    sums = jnp.concatenate([jnp.zeros_like(means[:1]), jnp.cumsum(means, 0)])
    level = jnp.arange(levels)
    end = (jnp.arange(len(means))[:, None] >> level) << level
    start = jnp.maximum(end - (1 << level), 0)
    return (sums[end] - sums[start]) / (1 << level)[:, None]


def column_of(options: Options, token: np.ndarray, read: np.ndarray) -> np.ndarray:
    """Column of `memory_gates` in which the row of position `token` has the memory of `read`."""
    own, other = token // options.segment_len, read // options.segment_len
    if options.segmentation == "constant":
        return np.where(own == other, 0, 1 + other)
    # The bucket is that of the highest binary digit in which the two differ.
    return np.frexp(own ^ other)[1]


def gate_maps(
    config: ModelConfig, model: nn.Module, params: PyTree, tokens: Array
) -> list[GateMap]:
    """The gates of every memory layer for one example.

    Args:
      config: of the model.
      model: gives logits for tokens [1, length], and sows the `RouterInputs` of its layers.
      params: its parameters.
      tokens: ids [length].
    """

    @jax.jit
    def weights(params: PyTree, tokens: Array) -> list[Array]:
        _, sown = model.apply({"params": params}, tokens[None], mutable=["intermediates"])
        layers = _router_inputs(config, sown["intermediates"])
        return [memory_gates(config.memory.options, inputs) for inputs in layers]

    blocks = [
        block
        for block in range(config.num_layers)
        if config.pattern[block % len(config.pattern)] == "memory"
    ]
    found = jax.device_get(weights(params, jnp.asarray(tokens)))
    return [GateMap(block, layer) for block, layer in zip(blocks, found, strict=True)]


def _router_inputs(config: ModelConfig, sown: Mapping[str, Any]) -> list[RouterInputs]:
    """What every memory layer has sown for the first example, in the order of the layers."""
    if config.scan_layers:
        groups = [
            jax.tree.map(lambda x, g=g: x[g], sown["layers"])
            for g in range(config.num_layers // len(config.pattern))
        ]
    else:
        groups = [sown[f"layers_{g}"] for g in range(config.num_layers // len(config.pattern))]
    layers = []
    for group in groups:
        for i, mixer in enumerate(config.pattern):
            if mixer == "memory":
                q, pooled, u = group[f"block_{i}"]["mixer"]["router"][0]
                batched = u is not None and config.memory.gate != "shared_query"
                layers.append(RouterInputs(q[0], pooled[0], u[0] if batched else u))
    return layers
