"""The language model: embedding, blocks in a repeated pattern, norm, head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mc_jax.errors import InputError
from mc_jax.model.attention import Attention
from mc_jax.model.config import ModelConfig
from mc_jax.model.layers import SwiGLU
from mc_jax.model.memory_layer import MemoryLayer
from mc_jax.typing import Array, Float, Int

_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Block(nn.Module):
    """Pre-norm residual block: `x + mixer(norm(x))`, then `x + feed-forward(norm(x))`."""

    config: ModelConfig
    mixer: str

    @nn.compact
    def __call__(self, x: Float[Array, "batch length dim"]) -> Float[Array, "batch length dim"]:
        """Apply the mixer named `mixer` and the feed-forward."""
        config = self.config
        if self.mixer == "memory":
            mixer: nn.Module = MemoryLayer(config, name="mixer")
        else:
            mixer = Attention(config, sliding=self.mixer == "sliding", name="mixer")
        x = x + mixer(nn.RMSNorm(dtype=config.compute_dtype, name="mixer_norm")(x))
        if config.mlp_dim:
            hidden = nn.RMSNorm(dtype=config.compute_dtype, name="mlp_norm")(x)
            x = x + SwiGLU(config, name="mlp")(hidden)
        return x


class Group(nn.Module):
    """One repetition of the pattern, a block for each of its mixers."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch length dim"]) -> Float[Array, "batch length dim"]:
        """Apply the blocks in turn."""
        config, block = self.config, Block
        if config.remat != "none":
            # Inside a scan nothing can be merged with the forward pass, so nothing is prevented.
            policy = _REMAT_POLICIES[config.remat]
            block = nn.remat(Block, policy=policy, prevent_cse=not config.scan_layers)
        for i, mixer in enumerate(config.pattern):
            x = block(config, mixer, name=f"block_{i}")(x)
        return x


class LanguageModel(nn.Module):
    """Logits of the next token.

    Parameters are plain float32 arrays. Those of repetition g of the pattern lie under
    `layers_{g}`, or with `scan_layers` stacked on a first axis under `layers`.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length vocab"]:
        """Logits in float32; those at position t depend on tokens 0..t.

        Args:
          tokens: token ids.

        Raises:
          InputError: `tokens` has not two axes.
        """
        if tokens.ndim != 2:
            raise InputError("tokens", tokens.shape, "[batch, length]")
        config = self.config
        # Both tables: embeddings of length 1, and logits of a normalised stream near variance 1.
        initial = nn.initializers.normal(config.dim**-0.5)
        shape = (config.vocab_size, config.dim)
        table = self.param("embedding", initial, shape)
        x = jnp.take(table, tokens, axis=0).astype(config.compute_dtype)
        x = self._blocks(x)
        x = nn.RMSNorm(dtype=config.compute_dtype, name="norm")(x)
        head = table if config.tie_embeddings else self.param("head", initial, shape)
        head = head.astype(x.dtype)
        return jnp.einsum("blm,vm->blv", x, head, preferred_element_type=jnp.float32)

    def _blocks(self, x: Array) -> Array:
        config = self.config
        groups = config.num_layers // len(config.pattern)
        if not config.scan_layers:
            for g in range(groups):
                x = Group(config, name=f"layers_{g}")(x)
            return x
        scan = nn.scan(
            lambda group, x, _: (group(x), None),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            length=groups,
        )
        return scan(Group(config, name="layers"), x, None)[0]
