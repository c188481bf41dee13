"""The read of memories that blocks of tokens have chosen: one op, three implementations."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import this_chip, too_little_vmem
from mc_jax.errors import InputError
from mc_jax.kernels.block_read import pallas_tpu
from mc_jax.kernels.block_read.config import Call, Config, default_config
from mc_jax.kernels.block_read.reference import reference
from mc_jax.kernels.block_read.xla import xla
from mc_jax.kernels.causal_tiles import Read
from mc_jax.kernels.choice import choose
from mc_jax.kernels.deep_read.activations import ACTIVATIONS
from mc_jax.kernels.linear_read.one_matrix import pull_matrix, read_matrix
from mc_jax.kernels.tiles import LANES
from mc_jax.memory.network import MlpNetwork, MlpWeights, linear_of
from mc_jax.typing import Array, Float, Int

F32 = jnp.float32


def block_read(
    x: Float[Array, "in tokens"],
    weights: Float[Array, "memories out in"] | MlpWeights,
    memory: Int[Array, "reads blocks"],
    gate: Float[Array, "reads tokens"],
    *,
    network: MlpNetwork | None = None,
    implementation: str | None = None,
    config: Config | None = None,
) -> Float[Array, "out tokens"]:
    """Read memories that blocks of tokens have chosen (eq. 17), for one head of one sequence.

    `y_t = sum_j gate_jt f_i(x_t)` with `i = memory[j, b(t)]`, for the block b of token t.

    Args:
      x: inputs; all other heads and sequences by `jax.vmap`.
      weights: cached memories. What no block reads may hold anything.
      memory: the memories that each block of `tokens / blocks` tokens reads; one that is out of
        range gives zeros. No gradient.
      gate: their weights.
      network: what MLP memories do, but for the affine of their norm; None for matrices, whose
        `f(x) = W x`.
      implementation: reference | xla | pallas | pallas_interpret (the TPU kernel's steps on any
        device, slow); None picks pallas on a TPU where it can run, else xla.
      config: block sizes of the kernel, for pallas alone; None picks them.

    Returns:
      Outputs in float32 (float64 for float64).

    Raises:
      InputError: arrays that do not go together, or an implementation that is unknown or cannot
        run here.
    """
    (reads, blocks), tokens = memory.shape, x.shape[1]
    if gate.shape != (reads, tokens):
        raise InputError("gate.shape", gate.shape, str((reads, tokens)))
    if tokens % blocks:
        raise InputError("x.shape", x.shape, f"whole blocks: tokens a multiple of {blocks}")
    memories, *shape = jax.tree.leaves(weights)[0].shape
    # Negative numbers would count from the end.
    memory = jnp.where(memory < 0, memories, memory)

    call = call_of(tokens // blocks, shape, x.dtype, network, reads, blocks, memories)

    def no_kernel(any_device: bool) -> str | None:
        return unsupported(call, any_device)

    implementation = choose(implementation, config, no_kernel)
    if implementation == "reference":
        return reference(_reader(network), x, weights, memory, gate)
    if implementation == "xla":
        pull = pull_matrix if network is None else None
        return xla(_reader(network), x, weights, memory, gate, pull)
    config = config or default_config(call, this_chip())
    assert config is not None
    config.check(call)
    interpret = implementation == "pallas_interpret"
    weights = jax.tree.map(lambda w: w.astype(x.dtype), weights)
    numbers = gate.astype(F32), memory.astype(jnp.int32)
    return pallas_tpu.read(call, config, interpret, x, weights, *numbers)


def unsupported(call: Call, any_device: bool = False) -> str | None:
    """Why the TPU kernel cannot run a read; None if it can.

    Args:
      call: facts of the read.
      any_device: leave out whether a TPU is here.
    """
    if not any_device and not pltpu.is_tpu_device():
        return "the kernel for blocks of tokens runs on a TPU"
    if call.size % LANES:
        return f"the kernel takes blocks of a multiple of {LANES} tokens, not {call.size}"
    if call.dtype not in (jnp.bfloat16, F32):
        return f"the kernel takes bfloat16 and float32, not {call.dtype}"
    if call.shape[0] % 16 or call.shape[1] % 16:
        shape = " x ".join(map(str, call.shape))
        return f"the kernel takes memories of multiples of 16, not {shape}"
    if call.activation not in (None, *ACTIVATIONS):
        return f"the kernel has no activation {call.activation!r}"
    if default_config(call, this_chip()) is None:
        return "one memory and the gradients of its weights do not fit into VMEM"
    return too_little_vmem(this_chip())


def call_of(
    size: int,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    network: MlpNetwork | None,
    reads: int,
    blocks: int,
    memories: int,
) -> Call:
    """Facts of a read.

    Args:
      size: tokens of a block.
      shape: of a matrix, (out, in), or of an MLP's second one, (head_dim, hidden).
      dtype: type of the inputs.
      network: what MLP memories do; None for matrices.
      reads: how many memories a block reads.
      blocks: blocks of tokens.
      memories: cached memories.
    """
    out, width = shape
    facts = blocks, size, reads, memories, (out, width), jnp.dtype(dtype)
    if network is None:
        return Call(*facts)
    return Call(*facts, network.activation, network.mem_norm == "layer")


def _reader(network: MlpNetwork | None) -> Read:
    if network is None:
        return read_matrix
    return lambda weights, x: network.features(linear_of(weights, x.dtype), x)
