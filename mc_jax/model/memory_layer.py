"""The layer around the memories: from the residual stream to the core and back."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from mc_jax.caching import memory_caching
from mc_jax.memory import DeepParams, NormParams
from mc_jax.memory.network import accumulator
from mc_jax.model.cache import MemoryLayerCache, last_tokens
from mc_jax.model.config import ModelConfig
from mc_jax.model.gates import RuleGates
from mc_jax.model.layers import CausalConv, output_projection, projection, unit
from mc_jax.model.token_blocks import tokens_first, tokens_last
from mc_jax.typing import Array, Float


class RouterInputs(NamedTuple):
    """What the gates over memories are computed from; `u` as `mc_jax.memory_caching` takes it."""

    q: Float[Array, "batch length heads head_dim"]
    k: Float[Array, "batch length heads head_dim"]
    u: Array | None


class MemoryLayer(nn.Module):
    """Queries, keys and values, convolved; memories with caching; a gated output.

    q, k and v pass a causal convolution and SiLU, q and k are brought to length 1. What is read is
    normalised per head, multiplied by `silu(W x)` (the output gate of Gated DeltaNet) and projected
    back. With `mutable=["intermediates"]` the layer sows its `RouterInputs` as "router".
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length dim"],
        cache: MemoryLayerCache | None = None,
        lengths: Array | None = None,
    ) -> tuple[Float[Array, "batch length dim"], MemoryLayerCache]:
        """Mix the tokens of each sequence, causally.

        Args:
          x: tokens.
          cache: of those before; None where the sequences start.
          lengths: how many of the tokens are there, [] or [batch]; None for all.
        """
        config, memory = self.config, self.config.memory
        heads = (config.num_heads, config.head_dim)
        before = memory.conv_width - 1
        projected = projection(config, (3, *heads), "qkv")(x)
        tail = None if cache is None else cache.tail.astype(projected.dtype)
        # Tokens last until the core, which has them so too.
        qkv = tokens_last(projected, before)
        qkv = nn.silu(CausalConv(memory.conv_width, name="conv")(qkv, tail))
        if tail is None:
            tail = jnp.zeros((x.shape[0], before, 3, *heads), projected.dtype)
        q, k = jnp.unstack(unit(qkv[:, :, :2], axis=-2), axis=2)
        q, k, v = (tokens_first(x) for x in (q, k, qkv[:, :, 2]))
        u = Router(config, name="score")(x) if memory.options.gated else None
        self.sow("intermediates", "router", RouterInputs(q, k, u))
        y, kept = memory_caching(
            q,
            k,
            v,
            u,
            RuleGates(memory, config.num_heads, name="rule")(x),
            InitialMemory(config, name="memory")() if memory.deep else None,
            rule=memory.rule,
            aggregation=memory.aggregation,
            segment_len=memory.segment_len,
            segmentation=memory.segmentation,
            write_mode=memory.write_mode,
            gate=memory.options.gate,
            top_k=memory.top_k,
            chunk_len=memory.chunk_len,
            mem_norm=memory.mem_norm,
            activation=memory.activation,
            initial_cache=None if cache is None else cache.memory,
            lengths=lengths,
            implementation=None if memory.implementation == "auto" else memory.implementation,
        )
        y = nn.RMSNorm(dtype=config.compute_dtype, name="norm")(y)
        y = y * nn.silu(projection(config, heads, "gate")(x))
        after = MemoryLayerCache(last_tokens(tail, projected, lengths), kept)
        return output_projection(config, 2, "out")(y), after


class Router(nn.Module):
    """What a gated aggregation scores memories with (paper.md, eqs. 10 and 16)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch length dim"]) -> Array:
        """Router queries, a temperature for each head, or scores by distance in float32."""
        config, memory = self.config, self.config.memory
        match memory.gate:
            case "context":
                return projection(config, (config.num_heads, config.head_dim), "query")(x)
            case "shared_query":
                # Queries have length 1 here, router queries of their own about sqrt(head_dim).
                initial = nn.initializers.constant(config.head_dim**0.5)
                return self.param("temperature", initial, (config.num_heads,))
            case "average":
                # Logarithms of the weights before they are made to add up to 1.
                scores = jnp.arange(memory.position_slots) * math.log(memory.average_decay)
                shape = (*x.shape[:2], config.num_heads, memory.position_slots)
                return jnp.broadcast_to(scores, shape)
            case _:
                features = (config.num_heads, memory.position_slots)
                return nn.DenseGeneral(features, dtype=accumulator(x.dtype), name="distance")(x)


class InitialMemory(nn.Module):
    """Learned initial weights of the MLP memories, one for each head, and their norm's affine."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> DeepParams:
        """The `params` of `mc_jax.memory_caching`."""
        heads, width = self.config.num_heads, self.config.head_dim
        hidden = self.config.memory.expansion * width
        normal = nn.initializers.normal
        w1 = self.param("w1", normal(hidden**-0.5), (heads, width, hidden))
        w2 = self.param("w2", normal(width**-0.5), (heads, hidden, width))
        if self.config.memory.mem_norm != "layer":
            return DeepParams(w1, w2)
        scale = self.param("norm_scale", nn.initializers.ones, (heads, width))
        bias = self.param("norm_bias", nn.initializers.zeros, (heads, width))
        return DeepParams(w1, w2, NormParams(scale, bias))
