"""The language model: embedding, blocks in a repeated pattern, norm, head."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mc_jax.errors import InputError
from mc_jax.kernels.remat import KEPT
from mc_jax.memory.network import narrow_matmul
from mc_jax.model.attention import Attention
from mc_jax.model.cache import MixerCache, ModelCache
from mc_jax.model.config import ModelConfig
from mc_jax.model.layers import SwiGLU, on_one_cpu, product
from mc_jax.model.memory_layer import MemoryLayer
from mc_jax.sharding import active_mesh, constrain
from mc_jax.typing import Array, Float, Int


class Past(NamedTuple):
    """Where a call's tokens lie.

    Attributes:
      position: tokens before them, [] or [batch].
      lengths: how many of them are there, [] or [batch]; None for all.
    """

    position: Array | int
    lengths: Array | None


_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    # And what kernels have read of the cached memories.
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(KEPT),
    ),
}


class Block(nn.Module):
    """Pre-norm residual block: `x + mixer(norm(x))`, then `x + feed-forward(norm(x))`."""

    config: ModelConfig
    mixer: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length dim"], past: Past | None = None, layer: Any = None
    ) -> tuple[Float[Array, "batch length dim"], MixerCache | None]:
        """Apply the mixer named `mixer` and the feed-forward; see `Group`."""
        config = self.config
        normed = nn.RMSNorm(dtype=config.compute_dtype, name="mixer_norm")(x)
        position, lengths = past or Past(0, None)
        y: Array
        after: MixerCache | None
        if self.mixer == "memory":
            y, after = MemoryLayer(config, name="mixer")(normed, layer, lengths)
        else:
            attention = Attention(config, sliding=self.mixer == "sliding", name="mixer")
            y, after = attention(normed, layer, position, lengths)
        x = x + y
        if config.mlp_dim:
            hidden = nn.RMSNorm(dtype=config.compute_dtype, name="mlp_norm")(x)
            x = x + SwiGLU(config, name="mlp")(hidden)
        x = constrain(x, "batch", "length", None)
        return x, None if past is None else after


class Group(nn.Module):
    """One repetition of the pattern, a block for each of its mixers."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length dim"],
        past: Past | None = None,
        layers: tuple[MixerCache, ...] | None = None,
    ) -> tuple[Float[Array, "batch length dim"], tuple[MixerCache | None, ...]]:
        """Apply the blocks in turn.

        Args:
          x: tokens.
          past: where the tokens lie in their sequences; None if no cache is wanted.
          layers: cache of each block; None where the sequences start.

        Returns:
          Tokens, and the caches after them if they are wanted.
        """
        config, block = self.config, Block
        if config.remat != "none" and past is None:
            # Inside a scan nothing can be merged with the forward pass, so nothing is prevented.
            policy = _REMAT_POLICIES[config.remat]
            block = nn.remat(Block, policy=policy, prevent_cse=not config.scan_layers)
        after = []
        for i, mixer in enumerate(config.pattern):
            layer = None if layers is None else layers[i]
            x, kept = block(config, mixer, name=f"block_{i}")(x, past, layer)
            after.append(kept)
        return x, tuple(after)


class LanguageModel(nn.Module):
    """Logits of the next token.

    Parameters are plain float32 arrays. Those of repetition g of the pattern lie under
    `layers_{g}`, or with `scan_layers` stacked on a first axis under `layers`.
    """

    config: ModelConfig

    def __call__(
        self, tokens: Int[Array, "batch length"], at: Int[Array, "batch places"] | None = None
    ) -> Float[Array, "batch places vocab"]:
        """Logits in float32 (float64 beside it); those at position t depend on tokens 0..t.

        Args:
          tokens: token ids.
          at: positions whose logits are wanted; None for all, in order.

        Raises:
          InputError: `tokens` has not two axes.
        """
        return self._logits(tokens, None, None, at=at)[0]

    def extend(
        self,
        tokens: Int[Array, "batch length"],
        cache: ModelCache | None = None,
        lengths: Int[Array, "*batch"] | None = None,
        last: bool = False,
    ) -> tuple[Float[Array, "batch length vocab"], ModelCache]:
        """Logits as `__call__` gives them, of tokens that go on from a cache.

        Inside `jit` a cache does not grow: see `mc_jax.inference.make_room`.

        Args:
          tokens: token ids.
          cache: of the tokens before; None where the sequences start.
          lengths: how many of the tokens are there, [] or [batch]; the rest is padding, whose
            logits mean nothing. None for all.
          last: give the logits of each sequence's last token only, [batch, 1, vocab].

        Raises:
          InputError: `tokens` has not two axes, or a mesh of several devices has been entered.
        """
        mesh = active_mesh()
        if mesh is not None:
            allowed = "one device for sequences that go on from a cache"
            raise InputError("mesh", dict(mesh.shape), allowed)
        position = jnp.zeros((), jnp.int32) if cache is None else cache.position
        past = Past(position, lengths)
        logits, layers = self._logits(tokens, past, cache and cache.layers, last)
        position = position + (tokens.shape[1] if lengths is None else lengths)
        return logits, ModelCache(position.astype(jnp.int32), layers)

    @nn.compact
    def _logits(
        self,
        tokens: Array,
        past: Past | None,
        layers: Any,
        last: bool = False,
        at: Array | None = None,
    ) -> tuple[Array, Any]:
        """Logits, and the caches of the layers unless `past` is None."""
        if tokens.ndim != 2:
            raise InputError("tokens", tokens.shape, "[batch, length]")
        config = self.config
        # Both tables: embeddings of length 1, and logits of a normalised stream near variance 1.
        initial = nn.initializers.normal(config.dim**-0.5)
        shape = (config.vocab_size, config.dim)
        table = self.param("embedding", initial, shape)
        # Rows are looked up where they are whole, else the tokens would have to be everywhere.
        rows = constrain(table, "vocab", None)
        x = jnp.take(rows, tokens, axis=0).astype(config.compute_dtype)
        x = constrain(x, "batch", "length", None)
        x, layers = self._blocks(x, past, layers)
        if last and past is not None:
            x = _last(x, past.lengths)
        if at is not None:
            x = jnp.take_along_axis(x, at[..., None], 1)
        x = nn.RMSNorm(dtype=config.compute_dtype, name="norm")(x)
        head = table if config.tie_embeddings else self.param("head", initial, shape)
        head = constrain(head.astype(x.dtype), "vocab", None)
        logits = product(narrow_matmul, x, head.T) if on_one_cpu() else narrow_matmul(x, head.T)
        return constrain(logits, "batch", "length", "vocab"), layers

    def _blocks(self, x: Array, past: Past | None, layers: Any) -> tuple[Array, Any]:
        config = self.config
        groups = config.num_layers // len(config.pattern)
        if not config.scan_layers:
            after = []
            for g in range(groups):
                before = None if layers is None else layers[g]
                x, kept = Group(config, name=f"layers_{g}")(x, past, before)
                after.append(kept)
            return x, tuple(after)
        scan = nn.scan(
            lambda group, x, past, layers: group(x, past, layers),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=groups,
        )
        return scan(Group(config, name="layers"), x, past, layers)


def _last(x: Array, lengths: Array | None) -> Array:
    """The last token of each sequence [batch, 1, dim]."""
    if lengths is None:
        return x[:, -1:]
    index = jnp.broadcast_to(lengths - 1, x.shape[:1])
    return jnp.take_along_axis(x, index[:, None, None], 1)
