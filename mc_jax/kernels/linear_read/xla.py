"""The read of matrix memories in XLA: several memories to a product, or each to its tokens."""

import jax.numpy as jnp

from mc_jax.kernels.causal_groups import extent, sum_over_memories
from mc_jax.kernels.gates import Router, Scores, read_gates, visible_memories
from mc_jax.kernels.selected_memories import read_selected, worth_selecting
from mc_jax.memory.network import matmul
from mc_jax.typing import Array, Float, Int

# Inputs of one product that reads several matrices at once, their gates folded into the inputs.
PRODUCT_WIDTH = 256


def xla(
    q: Float[Array, "in tokens"],
    weights: Float[Array, "memories out in"],
    router: Router | Scores | None,
    segment_len: int,
    first_segment: Int[Array, ""] | int,
    top_k: int | None,
) -> tuple[Float[Array, "out tokens"], Float[Array, " tokens"]]:
    """See `linear_read`."""
    tokens = q.shape[1]
    visible = visible_memories(weights.shape[0], tokens, segment_len, first_segment)
    seen, stride = extent(weights.shape[0], tokens, segment_len, first_segment)
    if router is not None and worth_selecting(top_k, seen / 2 if stride else seen, tokens):
        y, own = read_selected(_read, weights[:seen], router, visible, q, top_k)
        return y.astype(q.dtype), own
    own, gate = read_gates(router, visible, top_k, q.dtype)
    if not seen:
        return jnp.zeros((weights.shape[1], tokens), q.dtype), own
    y = mix(weights[:seen], gate[:seen], q, stride)
    return y.astype(q.dtype), own


def _read(weights: Float[Array, "out in"], x: Float[Array, "in slots"]) -> Array:
    return matmul(weights, x, x.dtype)


def mix(
    weights: Float[Array, "memories out in"],
    gate: Float[Array, "memories tokens"],
    x: Float[Array, "in tokens"],
    stride: int,
) -> Float[Array, "out tokens"]:
    """`sum_i gate_i W_i x`, several memories to a product; in the type of the gates.

    Args:
      weights: matrices.
      gate: weights of their outputs, 0 where a token sees no memory.
      x: inputs.
      stride: see `sum_over_memories`.
    """

    def add(y: Array, block: tuple[Array, Array], x: Array) -> Array:
        matrices, scale = block
        out = matrices.shape[1]
        scaled = (scale[:, None] * x).reshape(-1, x.shape[1]).astype(x.dtype)
        wide = matrices.swapaxes(0, 1).reshape(out, -1).astype(x.dtype)
        return y + jnp.matmul(wide, scaled, preferred_element_type=gate.dtype)

    at_once = max(1, PRODUCT_WIDTH // x.shape[0])
    return sum_over_memories(add, (weights, gate), x, stride, at_once)
