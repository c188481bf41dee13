"""Which kernel reads matrix memories on a GPU."""

import jax.numpy as jnp

from mc_jax.kernels.gates import Router, Scores, read_gates, selected_gates, visible_memories
from mc_jax.kernels.linear_read.triton import mix
from mc_jax.kernels.linear_read.triton_route import select_memories
from mc_jax.kernels.linear_read.triton_selected import mix_selected
from mc_jax.kernels.remat import keep
from mc_jax.typing import Array, Float, Int

# Most memories of a token that are selected in registers.
MOST_SELECTED = 8


def gpu(
    q: Float[Array, "in tokens"],
    weights: Float[Array, "memories out in"],
    router: Router | Scores | None,
    segment_len: int,
    first_segment: Int[Array, ""] | int,
    top_k: int | None,
    interpret: bool = False,
) -> tuple[Float[Array, "out tokens"], Float[Array, " tokens"]]:
    """See `linear_read`; `interpret` runs the kernels' steps on any device."""
    memories, tokens = weights.shape[0], q.shape[1]
    visible = visible_memories(memories, tokens, segment_len, first_segment)
    if router is None or top_k is None or 2 * top_k > memories:
        own, gate = keep(*read_gates(router, visible, top_k, q.dtype))
        return mix(weights, gate, q, segment_len, first_segment, interpret), own
    if isinstance(router, Router) and top_k <= MOST_SELECTED and q.dtype == jnp.bfloat16:
        own, gate, memory = select_memories(router, segment_len, first_segment, top_k, interpret)
    else:
        own, gate, memory = keep(*selected_gates(router, visible, top_k))
    return mix_selected(weights, gate, memory, q, interpret), own


def unsupported_on_gpu(shape: tuple[int, ...], dtype: jnp.dtype) -> str | None:
    """Why the kernels cannot run a read of memories (out, in); None if they can."""
    if dtype != jnp.bfloat16:
        return f"on a GPU the kernel takes bfloat16, not {jnp.dtype(dtype)}"
    if any(width not in (16, 32, 64, 128) for width in shape):
        allowed = "16, 32, 64 or 128 rows and columns"
        return f"on a GPU the kernel takes matrices of {allowed}, not {shape[0]} x {shape[1]}"
    return None
