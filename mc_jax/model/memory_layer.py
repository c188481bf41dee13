"""The layer around the memories: from the residual stream to the core and back."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from mc_jax.caching import memory_caching
from mc_jax.caching.context import Context
from mc_jax.device import on_gpu
from mc_jax.kernels.convolve import convolve, convolve_tiles, worthy_tile
from mc_jax.kernels.triton import no_triton, runs_triton
from mc_jax.memory import DeepParams, NormParams
from mc_jax.memory.network import accumulator
from mc_jax.model.cache import MemoryLayerCache, last_tokens
from mc_jax.model.config import MemoryConfig, ModelConfig
from mc_jax.model.gates import RuleGates
from mc_jax.model.layers import (
    NORMALISE_EPS,
    ConvKernel,
    GatedNorm,
    causal_conv,
    conv_rows,
    output_projection,
    projection,
    unit,
)
from mc_jax.model.token_blocks import tokens_first, tokens_last
from mc_jax.sharding import active_mesh, spec
from mc_jax.typing import Array, Float


class RouterInputs(NamedTuple):
    """What the gates over memories are computed from; `u` as `mc_jax.memory_caching` takes it.

    `pooled` is what the descriptors are means of: keys, or values.
    """

    q: Float[Array, "batch length heads head_dim"]
    pooled: Float[Array, "batch length heads head_dim"]
    u: Array | None


class MixerInputs(NamedTuple):
    """What a memory layer has made of its tokens, each by itself, before they meet.

    Attributes:
      qkv: queries, keys and values before the convolution.
      kernel: the convolution's.
      u: what the router scores memories with.
      gates: of the update rule.
      params: its learned parts.
    """

    qkv: Float[Array, "batch length 3 heads head_dim"]
    kernel: Float[Array, "width 3 heads head_dim"]
    u: Array | None
    gates: Any
    params: DeepParams | None


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
    ) -> tuple[Float[Array, "batch length dim"], MemoryLayerCache | None]:
        """Mix the tokens of each sequence, causally.

        Args:
          x: tokens.
          cache: of those before; None where the sequences start.
          lengths: how many of the tokens are there, [] or [batch]; None for all.

        Returns:
          Tokens, and the cache after them; None in its place on a mesh.
        """
        config, memory = self.config, self.config.memory
        heads = (config.num_heads, config.head_dim)
        inputs = MixerInputs(
            projection(config, (3, *heads), "qkv")(x),
            ConvKernel(memory.conv_width, name="conv")((3, *heads)),
            Router(config, name="score")(x) if memory.options.gated else None,
            RuleGates(memory, config.num_heads, name="rule")(x),
            InitialMemory(config, name="memory")() if memory.deep else None,
        )
        mesh = active_mesh()
        if mesh is None:
            y, router, after = mix(memory, inputs, cache, lengths)
        else:
            (y, router), after = mix_on_mesh(memory, mesh, inputs), None
        self.sow("intermediates", "router", router)
        gate = projection(config, heads, "gate")(x)
        y = GatedNorm(dtype=config.compute_dtype, name="norm")(y, gate)
        return output_projection(config, 2, "out")(y), after


def mix(
    memory: MemoryConfig,
    inputs: MixerInputs,
    cache: MemoryLayerCache | None = None,
    lengths: Array | None = None,
    context_axis: str | None = None,
) -> tuple[Array, RouterInputs, MemoryLayerCache | None]:
    """Where the tokens of a sequence meet: the convolution and the memories.

    Args:
      memory: the layer's.
      inputs: of these tokens.
      cache: of those before; None where the sequences start.
      lengths: how many of the tokens are there, [] or [batch]; None for all.
      context_axis: mesh axis that the sequences are split over; None if all tokens are here.

    Returns:
      What is read [batch, length, heads, head_dim], what the router saw, and the cache; None in
      its place with a `context_axis`.
    """
    projected, kernel = inputs.qkv, inputs.kernel
    before = memory.conv_width - 1
    implementation = None if memory.implementation == "auto" else memory.implementation
    tail = None if cache is None else cache.tail.astype(projected.dtype)
    if context_axis is None:
        q, k, v = convolved(kernel, projected, tail, implementation)
    else:
        context = Context(context_axis, memory.exchange, memory.placement)
        runs = jnp.split(projected, context.runs, 1)
        tails = context.ends_before([run[:, run.shape[1] - before :] for run in runs])
        parts = [convolved(kernel, *x, implementation) for x in zip(runs, tails, strict=True)]
        q, k, v = (jnp.concatenate(x, 1) for x in zip(*parts, strict=True))
    y, kept = memory_caching(
        q,
        k,
        v,
        inputs.u,
        inputs.gates,
        inputs.params,
        rule=memory.rule,
        aggregation=memory.aggregation,
        segment_len=memory.segment_len,
        segmentation=memory.segmentation,
        write_mode=memory.write_mode,
        gate=memory.options.gate,
        top_k=memory.top_k,
        chunk_len=memory.chunk_len,
        pooled=memory.pooled,
        route_every=memory.route_every,
        mem_norm=memory.mem_norm,
        activation=memory.activation,
        initial_cache=None if cache is None else cache.memory,
        lengths=lengths,
        implementation=implementation,
        context_axis=context_axis,
        exchange=memory.exchange,
        placement=memory.placement,
    )
    router = RouterInputs(q, memory.options.pooled_of(k, v), inputs.u)
    if kept is None:
        return y, router, None
    if tail is None:
        batch, _, *channels = projected.shape
        tail = jnp.zeros((batch, before, *channels), projected.dtype)
    return y, router, MemoryLayerCache(last_tokens(tail, projected, lengths), kept)


def convolved(
    kernel: Array,
    projected: Float[Array, "batch length 3 heads head_dim"],
    tail: Array | None,
    implementation: str | None,
) -> tuple[Array, Array, Array]:
    """Queries, keys and values [batch, length, heads, head_dim], as the core takes them.

    Args:
      kernel: the convolution's.
      projected: tokens that follow each other.
      tail: those before the first that the convolution reaches; None for zeros.
      implementation: of kernels; None for the best.
    """
    with jax.named_scope("convolve"):
        reason = no_triton(projected.dtype, projected.shape[-1])
        # "chunked" is the best kernel, too.
        named = None if implementation == "chunked" else implementation
        if tail is None and runs_triton(named, reason):
            made = convolve(kernel, projected, NORMALISE_EPS)
            q, k, v = (jnp.moveaxis(x, 1, 2) for x in made)
            return q, k, v
        if on_gpu():
            qkv = nn.silu(conv_rows(kernel, projected, tail))
            q, k = jnp.unstack(unit(qkv[:, :, :2]), axis=2)
            return q, k, qkv[:, :, 2]
        # Tokens last until the core, which has them so too.
        tile = worthy_tile(projected.shape, kernel.shape[0])
        if tile is not None:
            made = convolve_tiles(kernel, projected, tail, NORMALISE_EPS, tile)
            q, k, v = map(tokens_first, made)
            return q, k, v
        qkv = tokens_last(projected, kernel.shape[0] - 1)
        qkv = nn.silu(causal_conv(kernel, qkv, tail))
        q, k = jnp.unstack(unit(qkv[:, :, :2], axis=-2), axis=2)
        return tokens_first(q), tokens_first(k), tokens_first(qkv[:, :, 2])


def mix_on_mesh(
    memory: MemoryConfig, mesh: AbstractMesh, inputs: MixerInputs
) -> tuple[Array, RouterInputs]:
    """`mix` on every device, for its sequences, its heads and its run of the tokens."""
    context_axis = "context" if mesh.shape["context"] > 1 else None

    def of_tokens(x: Array) -> PartitionSpec:
        return spec(mesh, ("batch", "length", "heads", *[None] * (x.ndim - 3)), x.shape)

    def of_heads(x: Array) -> PartitionSpec:
        return spec(mesh, ("heads", *[None] * (x.ndim - 1)), x.shape)

    qkv_axes = ("batch", "length", None, "heads", None)
    u = inputs.u
    specs: Any = (
        spec(mesh, qkv_axes, inputs.qkv.shape),
        spec(mesh, (None, None, "heads", None), inputs.kernel.shape),
        None if u is None else of_heads(u) if u.ndim == 1 else of_tokens(u),
        jax.tree.map(of_tokens, inputs.gates),
        jax.tree.map(of_heads, inputs.params),
    )
    like_v = of_tokens(inputs.qkv[:, :, 0])

    def local(inputs: MixerInputs) -> tuple[Array, Array, Array]:
        y, router, _ = mix(memory, inputs, context_axis=context_axis)
        return y, router.q, router.pooled

    # Kernels do not say which axes their outputs vary over.
    y, q, pooled = jax.shard_map(
        local, mesh=mesh, in_specs=(MixerInputs(*specs),), out_specs=(like_v,) * 3, check_vma=False
    )(inputs)
    return y, RouterInputs(q, pooled, u)


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
