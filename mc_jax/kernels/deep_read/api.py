"""The read of MLP memories: one op, three implementations."""

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import this_chip, too_little_vmem
from mc_jax.errors import InputError
from mc_jax.kernels.choice import choose
from mc_jax.kernels.deep_read.activations import ACTIVATIONS
from mc_jax.kernels.deep_read.backward import backward
from mc_jax.kernels.deep_read.config import Call, Config, default_config
from mc_jax.kernels.deep_read.forward import forward
from mc_jax.kernels.deep_read.reference import reference
from mc_jax.kernels.deep_read.xla import xla
from mc_jax.kernels.gates import Router, Scores, check_router
from mc_jax.kernels.reading import differentiable, read_in_blocks
from mc_jax.memory.network import MlpNetwork, MlpWeights
from mc_jax.typing import Array, Float, Int

_read = differentiable(forward, backward)


def deep_read(
    q: Float[Array, "head_dim tokens"],
    weights: MlpWeights,
    router: Router | Scores | None,
    *,
    activation: str,
    mem_norm: str,
    segment_len: int,
    first_segment: Int[Array, ""] | int = 0,
    top_k: int | None = None,
    implementation: str | None = None,
    config: Config | None = None,
) -> tuple[Float[Array, "head_dim tokens"], Float[Array, " tokens"]]:
    """Read cached MLP memories (eqs. 7, 9 and 17), for one head of one sequence.

    `features_t = sum_i gate_ti f_i(q_t)` over the memories i before token t's own segment, with
    `f_i(x) = W1_i act(W2_i x)`, brought to mean 0 and variance 1 for `mem_norm="layer"`.

    Args:
      q: queries; all other heads and sequences by `jax.vmap`.
      weights: cached memories [memories, ...], oldest first. What no token sees may hold anything.
      router: what memories are scored with; None weights every memory 1 (residual).
      activation: the memory's activation.
      mem_norm: layer | none | weight_l2; the last has scaled the weights when it wrote them.
      segment_len: tokens of a segment.
      first_segment: segment of the first token, which memory `first_segment - 1` precedes.
      top_k: cached memories that a token reads, best first (ssc); None for all.
      implementation: reference | xla | pallas | pallas_interpret (the TPU kernel's steps on any
        device, slow); None picks pallas on a TPU where it can run, else xla.
      config: block sizes of the kernel, for pallas alone; None picks them.

    Returns:
      The cached part of the features, typed as q, and the weight of the online memory (1 without
      a router).

    Raises:
      InputError: arrays that do not go together, or an option or implementation that is unknown or
        cannot run here.
    """
    network = MlpNetwork(activation, mem_norm)
    memories, head_dim, hidden = weights.w1.shape
    if head_dim != q.shape[0]:
        raise InputError("weights.w1.shape", weights.w1.shape, str((memories, q.shape[0], hidden)))
    if weights.w2.shape != (memories, hidden, head_dim):
        raise InputError("weights.w2.shape", weights.w2.shape, str((memories, hidden, head_dim)))
    check_router(router, memories, q.shape[1], segment_len, top_k)
    call = call_of(q, weights, router, activation, mem_norm, segment_len, top_k)

    def no_kernel(any_device: bool) -> str | None:
        return unsupported(call, isinstance(router, Scores), any_device)

    implementation = choose(implementation, config, no_kernel)
    if implementation in ("reference", "xla"):
        form = xla if implementation == "xla" else reference
        return form(q, weights, router, network, segment_len, first_segment, top_k)
    config = config or default_config(call, this_chip())
    assert config is not None
    config.check(call)
    interpret = implementation == "pallas_interpret"
    return read_in_blocks(_read, call, config, interpret, first_segment, q, router, weights)


def unsupported(call: Call, scores: bool = False, any_device: bool = False) -> str | None:
    """Why the TPU kernel cannot run a read; None if it can.

    Args:
      call: facts of the read.
      scores: whether logits are given instead of descriptors.
      any_device: leave out whether a TPU is here.
    """
    if not any_device and not pltpu.is_tpu_device():
        return "the kernel runs on a TPU"
    if call.dtype not in (jnp.bfloat16, jnp.float32):
        return f"the kernel takes bfloat16 and float32, not {call.dtype}"
    if not call.memories:
        return "the kernel takes at least one memory"
    if call.head_dim % 16:
        return f"the kernel takes a head_dim that is a multiple of 16, not {call.head_dim}"
    if call.hidden % 8:
        return f"the kernel takes a hidden layer that is a multiple of 8, not {call.hidden}"
    if call.activation not in ACTIVATIONS:
        return f"the kernel has no activation {call.activation!r}"
    if scores:
        return "the kernel computes scores from descriptors; it takes no scores by position"
    if default_config(call, this_chip()) is None:
        return "eight memories and the gradients of their weights do not fit into VMEM"
    return too_little_vmem(this_chip())


def call_of(
    q: Array,
    weights: MlpWeights,
    router: Router | Scores | None,
    activation: str,
    mem_norm: str,
    segment_len: int,
    top_k: int | None,
) -> Call:
    """Facts of a read; arguments as of `deep_read`, arrays or their shapes."""
    memories, head_dim, hidden = weights.w1.shape
    tokens = q.shape[1]
    return Call(
        tokens=tokens,
        length=tokens,
        memories=memories,
        head_dim=head_dim,
        segment_len=segment_len,
        top_k=top_k,
        routed=router is not None,
        hidden=hidden,
        activation=activation,
        layer_norm=mem_norm == "layer",
        dtype=jnp.dtype(q.dtype),
    )
