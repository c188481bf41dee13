"""The read of matrix memories: one op, three implementations."""

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import on_gpu, this_chip
from mc_jax.errors import InputError
from mc_jax.kernels.choice import choose
from mc_jax.kernels.gates import Router, Scores, check_router
from mc_jax.kernels.linear_read import pallas_tpu
from mc_jax.kernels.linear_read.config import Call, Config, default_config
from mc_jax.kernels.linear_read.gpu import gpu
from mc_jax.kernels.linear_read.reference import reference
from mc_jax.kernels.linear_read.xla import xla
from mc_jax.kernels.reading import differentiable, read_in_blocks
from mc_jax.kernels.triton import no_triton
from mc_jax.typing import Array, Float, Int

_read = differentiable(pallas_tpu.forward, pallas_tpu.backward)


def linear_read(
    q: Float[Array, "in tokens"],
    weights: Float[Array, "memories out in"],
    router: Router | Scores | None,
    *,
    segment_len: int,
    first_segment: Int[Array, ""] | int = 0,
    top_k: int | None = None,
    implementation: str | None = None,
    config: Config | None = None,
) -> tuple[Float[Array, "out tokens"], Float[Array, " tokens"]]:
    """Read cached matrix memories (eqs. 7, 9 and 17), for one head of one sequence.

    `y_t = sum_i gate_ti W_i q_t` over the memories i before token t's own segment.

    Args:
      q: queries; all other heads and sequences by `jax.vmap`.
      weights: cached memories, oldest first; they need not be square, nor as wide as the router.
        What no token sees may hold anything.
      router: what memories are scored with; None weights every memory 1 (residual).
      segment_len: tokens of a segment.
      first_segment: segment of the first token, which memory `first_segment - 1` precedes.
      top_k: cached memories that a token reads, best first (ssc); None for all.
      implementation: reference | xla | pallas | pallas_interpret (the TPU kernel's steps on any
        device, slow); None picks pallas on a TPU or a GPU where it can run, else xla.
      config: block sizes of the TPU's kernel, for pallas alone; None picks them.

    Returns:
      The cached part of the outputs, typed as q, and the weight of the online memory (1 without
      a router).

    Raises:
      InputError: arrays that do not go together, or an implementation that is unknown or cannot
        run here.
    """
    (memories, out, width), tokens = weights.shape, q.shape[1]
    if q.shape[0] != width:
        raise InputError("weights.shape", weights.shape, str((memories, out, q.shape[0])))
    check_router(router, memories, tokens, segment_len, top_k)

    call = call_of(q, weights, router, segment_len, top_k)

    def no_kernel(any_device: bool) -> str | None:
        return unsupported(call, isinstance(router, Scores), any_device)

    implementation = choose(implementation, config, no_kernel)
    if implementation in ("reference", "xla"):
        form = xla if implementation == "xla" else reference
        return form(q, weights, router, segment_len, first_segment, top_k)
    if implementation == "pallas" and on_gpu():
        if config is not None:
            raise InputError("config", config, "None: on a GPU blocks are what they are")
        return gpu(q, weights, router, segment_len, first_segment, top_k)
    assert not isinstance(router, Scores)  # refused above
    config = config or default_config(call, this_chip())
    assert config is not None
    config.check(call.memories)
    interpret = implementation == "pallas_interpret"
    return read_in_blocks(_read, call, config, interpret, first_segment, q, router, weights)


def unsupported(call: Call, scores: bool = False, any_device: bool = False) -> str | None:
    """Why no kernel can run a read; None if one can.

    Args:
      call: facts of the read.
      scores: whether logits are given instead of descriptors.
      any_device: leave out what device is here, and ask for the TPU's kernel.
    """
    if not call.memories:
        return "the kernel takes at least one memory"
    if not any_device and on_gpu():
        return no_triton(call.dtype, call.out, call.width)
    if not any_device and not pltpu.is_tpu_device():
        return "the kernels run on a TPU or a GPU"
    if call.dtype not in (jnp.bfloat16, jnp.float32):
        return f"the kernel takes bfloat16 and float32, not {call.dtype}"
    if call.out % 16 or call.width % 16:
        return f"the kernel takes matrices of multiples of 16, not {call.out} x {call.width}"
    if scores:
        return "the kernel computes scores from descriptors; it takes no scores by position"
    if default_config(call, this_chip()) is None:
        return "eight memories and the gradients of their weights do not fit into VMEM"
    return None


def call_of(
    q: Array, weights: Array, router: Router | Scores | None, segment_len: int, top_k: int | None
) -> Call:
    """Facts of a read; arguments as of `linear_read`, arrays or their shapes."""
    (memories, out, width), tokens = weights.shape, q.shape[1]
    return Call(
        tokens=tokens,
        length=tokens,
        memories=memories,
        head_dim=router.u.shape[0] if isinstance(router, Router) else width,
        segment_len=segment_len,
        top_k=top_k,
        routed=router is not None,
        out=out,
        width=width,
        dtype=jnp.dtype(q.dtype),
    )
