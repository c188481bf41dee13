"""Which kernel reads matrix memories on a GPU."""

from mc_jax.kernels.gates import Router, Scores, read_gates, selected_gates, visible_memories
from mc_jax.kernels.linear_read.triton import mix
from mc_jax.kernels.linear_read.triton_route import select_memories
from mc_jax.kernels.linear_read.triton_selected import mix_selected
from mc_jax.kernels.remat import keep
from mc_jax.kernels.triton import WIDTHS
from mc_jax.typing import Array, Float, Int

# Most memories of a token that are selected in registers.
MOST_SELECTED = 8
# Most gates of a token that are worth keeping for the backward pass.
MOST_KEPT = 256


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
        own, gate = read_gates(router, visible, top_k, q.dtype)
        if memories <= MOST_KEPT:
            own, gate = keep(own, gate)
        y = mix(weights, gate, q, segment_len, first_segment, interpret)
    else:
        if _selects_in_registers(router, top_k):
            own, gate, memory = select_memories(
                router, segment_len, first_segment, top_k, interpret
            )
        else:
            own, gate, memory = keep(*selected_gates(router, visible, top_k))
        y = mix_selected(weights, gate, memory, q, interpret)
    return keep(y)[0], own


def _selects_in_registers(router: Router | Scores, top_k: int) -> bool:
    scored = isinstance(router, Router) and router.u.shape[0] in WIDTHS
    return scored and top_k <= MOST_SELECTED
