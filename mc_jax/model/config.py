"""Every setting of the model: its default, what it means, and the check that it can be used."""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mc_jax.caching import Options
from mc_jax.caching.calls import Sizes
from mc_jax.caching.context import EXCHANGES, PLACEMENTS, Context
from mc_jax.caching.kernels import check_implementation
from mc_jax.device import on_tpu
from mc_jax.errors import InputError
from mc_jax.memory import ACTIVATIONS, MEM_NORMS, get_rule, rule_names
from mc_jax.settings import Settings

MIXERS = ("memory", "attention", "sliding")
DTYPES = ("float32", "bfloat16", "float64")
REMATS = ("none", "full", "dots")
DECAYS = ("auto", "on", "off")
MEMORY_IMPLEMENTATIONS = ("auto", "chunked", "recurrent", "xla", "pallas")
ATTENTION_IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")


@dataclasses.dataclass(frozen=True)
class MemoryConfig(Settings):
    """A memory layer: how memories are written, cached and read. Keys of `config.model.memory`."""

    # How a memory is written: linear | swla | dla | titans.
    rule: str = "linear"
    # How memories are read: none (the plain RNN) | residual | grm | soup | ssc.
    aggregation: str = "grm"
    # Tokens between two cached memories; a multiple of chunk_len.
    segment_len: int = 256
    # constant | logarithmic (the prefix as binary digits; with grm this is Log-Linear++).
    segmentation: str = "constant"
    # independent (each segment starts afresh) | checkpoint (snapshots of one recurrence).
    write_mode: str = "independent"
    # Scores of grm, soup and ssc: context | shared_query | position | none (every weight 1) |
    # average (nothing learned: a moving average over the segments).
    gate: str = "context"
    # Of gate="average": what a memory's weight falls to with each segment back; 1 for no fall.
    average_decay: float = 0.5
    # Cached memories that ssc selects for a token.
    top_k: int = 4
    # Of ssc: tokens that read the memories which the first of them selects, a divisor of
    # segment_len. 1 is the paper's: each selects its own.
    route_every: int = 1
    # Tokens compressed in parallel; for dla and titans part of the meaning.
    chunk_len: int = 64
    # What a segment is described by to gates of context and shared_query, by its mean over the
    # segment: keys | values.
    pooled: str = "keys"
    # Tokens that one write of swla spans: the c of eq. 26.
    window: int = 2
    # Whether memories forget: auto (dla does, linear does not) | on | off. swla and titans always
    # do, with a learned retention.
    decay: str = "auto"
    # Hidden width of an MLP memory over the head's width.
    expansion: int = 4
    # Activation of an MLP memory: gelu | gelu_tanh | silu | relu.
    activation: str = "gelu"
    # Norm of an MLP memory: layer | none | weight_l2.
    mem_norm: str = "layer"
    # Width of the causal convolution over queries, keys and values.
    conv_width: int = 4
    # Distances that gate="position" tells apart; the last serves all that lie further.
    position_slots: int = 64
    # How devices that share a sequence (mesh.context) get each other's memories: gather (each one
    # holds all of a layer while it reads them) | ring (they are passed on, and none does).
    exchange: str = "gather"
    # Which part of a sequence each of those devices has: contiguous (one run of it) | zigzag (one
    # run from the front and one from the back, so that all have as many memories to read).
    placement: str = "contiguous"
    # auto | chunked | recurrent (the equations token by token, slow) | xla | pallas.
    implementation: str = "auto"

    GROUP = "model.memory"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
          InputError: a value that is not allowed, or two that do not go together.
        """
        super().__post_init__()
        self._check_choice("rule", rule_names())
        try:
            self.options  # noqa: B018 (the core checks its own options)
        except InputError as error:
            raise InputError(self._path(error.field), error.found, error.allowed) from None
        self._check_choice("decay", DECAYS)
        self._check_choice("activation", tuple(ACTIVATIONS))
        self._check_choice("mem_norm", MEM_NORMS)
        self._check_choice("exchange", EXCHANGES)
        self._check_choice("placement", PLACEMENTS)
        self._check_choice("implementation", MEMORY_IMPLEMENTATIONS)
        if not 0 < self.average_decay <= 1:
            raise InputError(self._path("average_decay"), self.average_decay, "above 0, up to 1")
        self._check_at_least(1, "window", "expansion", "conv_width", "position_slots")
        if self.rule in ("swla", "titans") and self.decay == "off":
            raise InputError(
                self._path("decay"), "off", f"auto | on: the retention is part of {self.rule}"
            )

    @property
    def options(self) -> Options:
        """What the core calls the options of caching."""
        return Options(
            self.aggregation,
            self.segment_len,
            self.segmentation,
            self.write_mode,
            # A moving average scores memories by their distance.
            "position" if self.gate == "average" else self.gate,
            self.top_k,
            self.chunk_len,
            self.pooled,
            self.route_every,
        )

    @property
    def deep(self) -> bool:
        """Whether memories are MLPs rather than matrices."""
        return self.rule in ("dla", "titans")

    @property
    def decays(self) -> bool:
        """Whether memories forget, by a learned retention."""
        return self.decay == "on" or (self.decay == "auto" and self.rule != "linear")


@dataclasses.dataclass(frozen=True)
class AttentionConfig(Settings):
    """Softmax attention with RoPE. Keys of `config.model.attention`."""

    # Tokens that a "sliding" layer sees, its own among them.
    window: int = 256
    # Base of the rotary embedding's wavelengths.
    rope_theta: float = 10000.0
    # xla | cudnn, of jax.nn.dot_product_attention | splash, JAX's kernel for TPUs | auto, which is
    # splash on a TPU and else what jax.nn picks. Of fresh sequences; those that go on use XLA's.
    implementation: str = "auto"

    GROUP = "model.attention"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
          InputError: a value that is not allowed.
        """
        super().__post_init__()
        self._check_at_least(1, "window")
        self._check_choice("implementation", ATTENTION_IMPLEMENTATIONS)
        if self.implementation == "splash" and not on_tpu():
            allowed = "auto | xla | cudnn: splash attention runs on a TPU"
            raise InputError(self._path("implementation"), self.implementation, allowed)
        if not self.rope_theta > 1:
            raise InputError(self._path("rope_theta"), self.rope_theta, "a number > 1")


@dataclasses.dataclass(frozen=True)
class ModelConfig(Settings):
    """The language model. Keys of `config.model`."""

    # Size of the vocabulary; at least the tokenizer's, which for bytes is 257.
    vocab_size: int = 257
    # Width of the residual stream.
    dim: int = 128
    # Blocks: a mixer and a feed-forward each.
    num_layers: int = 4
    # Heads of memories and of attention; a divisor of dim.
    num_heads: int = 4
    # Hidden width of the SwiGLU feed-forward; 0 leaves it out.
    mlp_dim: int = 384
    # Mixers, cycled over the blocks: memory | attention | sliding. Transformer++ is
    # ("attention",); num_layers is a multiple of the pattern's length.
    pattern: tuple[str, ...] = ("memory",)
    # Whether the head is the embedding's transpose.
    tie_embeddings: bool = True
    # Type that activations and matmuls run in: float32 | bfloat16 | float64 (for checks, with
    # JAX_ENABLE_X64=1). Parameters, gates and the memories' states are always float32, or computed
    # in float64 beside it.
    dtype: str = "float32"
    # One compiled body for all repetitions of the pattern, which a deep model compiles much
    # faster; unrolled, a shallow one compiles and runs faster.
    scan_layers: bool = False
    # What the backward pass computes again, per block: none | full (everything) | dots
    # (everything but the matmuls with weights and, on a GPU or TPU, the reads of cached memories).
    remat: str = "none"
    # Memory layers.
    memory: MemoryConfig = MemoryConfig()
    # Attention layers.
    attention: AttentionConfig = AttentionConfig()

    GROUP = "model"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
          InputError: a value that is not allowed, or two that do not go together.
        """
        super().__post_init__()
        self._check_at_least(2, "vocab_size")
        self._check_at_least(1, "dim", "num_layers", "num_heads")
        self._check_at_least(0, "mlp_dim")
        self._check_choice("dtype", DTYPES)
        if self.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            allowed = "float32 | bfloat16, or float64 with JAX_ENABLE_X64=1 in the environment"
            raise InputError(self._path("dtype"), self.dtype, allowed)
        self._check_choice("remat", REMATS)
        if not self.pattern or any(mixer not in MIXERS for mixer in self.pattern):
            allowed = "a tuple of one or more of " + " | ".join(MIXERS)
            raise InputError(self._path("pattern"), self.pattern, allowed)
        if self.num_layers % len(self.pattern):
            allowed = f"a multiple of the {len(self.pattern)} mixers of model.pattern"
            raise InputError(self._path("num_layers"), self.num_layers, allowed)
        if self.dim % self.num_heads:
            allowed = f"a divisor of model.dim={self.dim}"
            raise InputError(self._path("num_heads"), self.num_heads, allowed)
        if set(self.pattern) != {"memory"} and self.head_dim % 2:
            allowed = f"heads of even width for rotary attention, not {self.head_dim}"
            raise InputError(self._path("num_heads"), self.num_heads, allowed)
        if "memory" in self.pattern:
            self._check_kernels()

    def _check_kernels(self) -> None:
        """Raise InputError for kernels that are named and cannot run here."""
        memory = self.memory
        rule = get_rule(memory.rule, mem_norm=memory.mem_norm, activation=memory.activation)
        hidden = None if rule.network.is_linear else memory.expansion * self.head_dim
        # As long as a segment: how long sequences are is not the model's to say.
        sizes = Sizes(1, memory.segment_len, self.head_dim, hidden, self.compute_dtype)
        try:
            check_implementation(memory.implementation, memory.options, rule, sizes)
        except InputError as error:
            raise InputError(memory._path(error.field), error.found, error.allowed) from None

    def check_context(self, devices: int, length: int) -> None:
        """Check that sequences of `length` tokens can be shared by so many devices.

        Raises:
          InputError: naming the setting.
        """
        if devices == 1:
            return
        if set(self.pattern) != {"memory"}:
            allowed = (
                f"1 with model.pattern={self.pattern}: attention does not reach over devices; use "
                "mesh.fsdp and mesh.tensor for hybrids"
            )
            raise InputError("mesh.context", devices, allowed)
        memory = self.memory
        if memory.implementation == "recurrent":
            allowed = f"a chunk-parallel one with mesh.context={devices}"
            raise InputError(memory._path("implementation"), memory.implementation, allowed)
        reach = max(memory.conv_width - 1, memory.window - 1 if memory.rule == "swla" else 0)
        try:
            Context("context", memory.exchange, memory.placement).check(
                memory.options, get_rule(memory.rule), length // devices, reach
            )
        except InputError as error:
            field = memory._path(error.field)
            if error.field == "context_axis":
                field = "mesh.context"
            raise InputError(field, error.found, error.allowed) from None

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.num_heads

    @property
    def compute_dtype(self) -> jnp.dtype:
        """`dtype` as JAX knows it."""
        return jnp.dtype(self.dtype)


def default_config() -> ConfigDict:
    """Every key of `config.model` with its default; the comments stand beside the fields above."""
    return ConfigDict(dataclasses.asdict(ModelConfig()))
