"""The write of MLP memories: one op, three implementations."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import this_chip, too_little_vmem, vmem_limit
from mc_jax.errors import InputError
from mc_jax.kernels.activations import ACTIVATIONS
from mc_jax.kernels.choice import choose
from mc_jax.kernels.deep_write.blocks import Layout, Learned
from mc_jax.kernels.deep_write.chunk import Affine, Memory, Tokens
from mc_jax.kernels.deep_write.config import Call, Config, default_config
from mc_jax.kernels.deep_write.forward import Outputs
from mc_jax.kernels.deep_write.vjp import write
from mc_jax.kernels.writing import Sequence, Written, check_write_mode
from mc_jax.kernels.writing import write as write_without_kernel
from mc_jax.memory.deep import DeepRule, Steps, TitansGates
from mc_jax.memory.network import DeepParams, MlpWeights, accumulator
from mc_jax.memory.rule import State
from mc_jax.typing import Array, Float


def deep_write(
    rule: DeepRule,
    params: DeepParams,
    q: Float[Array, "heads length head_dim"],
    k: Float[Array, "heads length head_dim"],
    v: Float[Array, "heads length head_dim"],
    steps: Steps,
    *,
    segment_len: int,
    chunk_len: int,
    write_mode: str = "independent",
    ends_dtype: jnp.dtype | None = None,
    implementation: str | None = None,
    config: Config | None = None,
) -> Written:
    """Compress a fresh sequence and read the online memory (eqs. 30, 34 and 35).

    Token t reads `W1_t act(W2_t q_t)` with its own weights; inside a chunk all inner gradients are
    taken at the weights of the chunk's start. A segment starts from the initial weights without
    momentum, in checkpoint mode from where the one before it ended.

    Args:
      rule: DLA or Titans.
      params: its learned parts, leaves [heads, ...].
      q: queries; `heads` are those of all sequences. Tokens are rows: a chunk of 64 tokens would
        leave half of the lanes empty.
      k: keys.
      v: values.
      steps: gates as `rule.prepare` makes them, leaves [heads, length].
      segment_len: tokens of a segment, a multiple of `chunk_len`.
      chunk_len: tokens of a chunk. The last chunk and the last segment may have fewer.
      write_mode: independent | checkpoint.
      ends_dtype: type of the weights at the ends of segments; None for that of the state.
      implementation: reference | xla | pallas | pallas_interpret (the TPU kernel's steps on any
        device, slow); None picks pallas on a TPU where it can run, else xla.
      config: steps of the kernel, for pallas alone; None picks them.

    Returns:
      Features, ends and final state.

    Raises:
      InputError: an argument that is not allowed, or an implementation that cannot run here.
    """
    _check_shapes(params, q, k, v, steps)
    _check_options(segment_len, chunk_len, write_mode)
    state_dtype = accumulator(k.dtype)
    heads, length, head_dim = q.shape
    call = Call(
        heads=heads,
        length=length,
        head_dim=head_dim,
        hidden=params.w1.shape[-1],
        segment_len=segment_len,
        chunk_len=chunk_len,
        independent=write_mode == "independent",
        titans=rule.gates_type is TitansGates,
        activation=rule.network.activation,
        layer_norm=rule.network.mem_norm == "layer",
        dtype=jnp.dtype(k.dtype),
        ends_dtype=jnp.dtype(ends_dtype or state_dtype),
    )

    def no_kernel(any_device: bool) -> str | None:
        return unsupported(rule, call, any_device)

    implementation = choose(implementation, config, no_kernel)
    if implementation in ("pallas", "pallas_interpret"):
        interpret = implementation == "pallas_interpret"
        return _pallas(call, config, interpret, params, q, k, v, steps)
    sequence = Sequence(q, k, v, steps)
    written = write_without_kernel(
        implementation, rule, params, sequence, segment_len, chunk_len, call.independent
    )
    weights = _cast(written.ends.weights, call.ends_dtype)
    return written._replace(ends=written.ends._replace(weights=weights))


def _check_shapes(params: DeepParams, q: Array, k: Array, v: Array, steps: Steps) -> None:
    """Raise InputError for arrays that do not go together."""
    heads, length, head_dim = q.shape
    if not length:
        raise InputError("length", 0, "at least one token")
    hidden = params.w1.shape[-1]
    for field, x, shape in (
        ("k", k, q.shape),
        ("v", v, q.shape),
        ("params.w1", params.w1, (heads, head_dim, hidden)),
        ("params.w2", params.w2, (heads, hidden, head_dim)),
        *((f"steps.{name}", x, (heads, length)) for name, x in steps._asdict().items()),
    ):
        if x is not None and x.shape != shape:
            raise InputError(f"{field}.shape", x.shape, str(shape))


def _check_options(segment_len: int, chunk_len: int, write_mode: str) -> None:
    """Raise InputError for options that no implementation takes."""
    if chunk_len < 1:
        raise InputError("chunk_len", chunk_len, "at least 1")
    if segment_len < 1 or segment_len % chunk_len:
        raise InputError("segment_len", segment_len, f"a multiple of chunk_len={chunk_len}")
    check_write_mode(write_mode)


def unsupported(rule: DeepRule, call: Call, any_device: bool = False) -> str | None:
    """Why the TPU kernel cannot run a call; None if it can.

    Args:
      rule: the update rule.
      call: its static facts.
      any_device: leave out whether a TPU is here.
    """
    if not any_device and not pltpu.is_tpu_device():
        return "the kernel runs on a TPU"
    if rule.network.mem_norm not in ("layer", "none"):
        return f"the kernel has mem_norm layer and none, not {rule.network.mem_norm}"
    if call.activation not in ACTIVATIONS:
        return f"the kernel has the activations {', '.join(ACTIVATIONS)}, not {call.activation}"
    if call.dtype not in (jnp.bfloat16, jnp.float32):
        return f"the kernel takes bfloat16 and float32, not {call.dtype}"
    if call.head_dim % 8:
        return f"the kernel takes a head_dim that is a multiple of 8, not {call.head_dim}"
    if call.chunk_len % 16:
        return f"the kernel takes a chunk_len that is a multiple of 16, not {call.chunk_len}"
    if default_config(call, this_chip()) is None:
        return f"states of {call.head_dim} by {call.hidden} do not fit into the chip's VMEM"
    return too_little_vmem(this_chip())


def _pallas(
    call: Call,
    config: Config | None,
    interpret: bool,
    params: DeepParams,
    q: Array,
    k: Array,
    v: Array,
    steps: Steps,
) -> Written:
    """The kernel, in its own layout."""
    chip = this_chip()
    config = config or default_config(call, chip)
    assert config is not None
    config.check(call)
    w1, w2 = (w.astype(jnp.float32) for w in (params.w1, params.w2.swapaxes(1, 2)))
    affine = None
    if call.layer_norm:
        affine = Affine(*(x[:, None].astype(jnp.float32) for x in params.norm))
    tokens = Tokens(q.astype(call.dtype), k, v.astype(call.dtype), _gates(call, steps))
    layout = Layout(call, config, vmem_limit(chip))
    outputs = write(layout, interpret, tokens, Learned(Memory(w1, w2), affine))
    final = _final_state(call, params, outputs)
    return Written(outputs.features.astype(q.dtype), State(MlpWeights(*outputs.ends)), final)


def _gates(call: Call, steps: Steps) -> Float[Array, "heads chunks gates chunk"]:
    """Gates by chunk, with logs summed up inside each; places without a token are neutral."""

    def by_chunk(x: Array) -> Array:
        padding = call.chunks * call.chunk_len - call.length
        x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, padding)))
        return x.reshape(call.heads, call.chunks, call.chunk_len)

    def log_sums(x: Array) -> Array:
        return jnp.cumsum(by_chunk(x), -1)

    rows = [log_sums(steps.log_alpha), by_chunk(steps.eta)]
    if call.titans:
        rows += [log_sums(steps.log_beta), by_chunk(steps.applied)]
    return jnp.stack(rows, 2)


def _final_state(call: Call, params: DeepParams, outputs: Outputs) -> State:
    """The state with which the sequence goes on, as the project's functions have it."""

    def weights(memory: Memory) -> MlpWeights:
        return MlpWeights(memory.w1, memory.w2.swapaxes(1, 2))

    (last, momentum), anchor = outputs.final
    if call.independent and call.length % call.segment_len == 0:
        initial = _cast(MlpWeights(params.w1, params.w2), jnp.dtype(jnp.float32))
        nothing = jax.tree.map(jnp.zeros_like, initial) if call.titans else None
        return State(initial, nothing, anchor=initial)
    return State(
        weights(last),
        None if momentum is None else weights(momentum),
        anchor=weights(last if anchor is None else anchor),
    )


def _cast(weights: MlpWeights, dtype: jnp.dtype) -> MlpWeights:
    return MlpWeights(*(w.astype(dtype) for w in weights))
