"""What a write of MLP memories is made of: its static facts, its blocks, and what it costs."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import vmem_limit, vmem_room
from mc_jax.errors import InputError
from mc_jax.kernels.tiles import LANES, round_up

# More heads side by side hide hardly more latency, and take long to compile.
MOST_HEADS = 8
# Tokens of a step that make up for the state that it starts from.
ENOUGH_TOKENS = 256


@dataclasses.dataclass(frozen=True)
class Call:
    """Static facts of a write.

    Attributes:
      heads: independent memories, of all sequences.
      length: tokens.
      head_dim: width of tokens.
      hidden: width of the memory's hidden layer.
      segment_len: tokens of a segment.
      chunk_len: tokens of a chunk.
      independent: whether every segment starts from the initial weights.
      titans: whether gradients go through a momentum.
      activation: the memory's activation.
      layer_norm: whether the memory's output is normalised.
      dtype: type of the tokens and of products.
      ends_dtype: type of the weights at the ends of segments.
    """

    heads: int
    length: int
    head_dim: int
    hidden: int
    segment_len: int
    chunk_len: int
    independent: bool
    titans: bool
    activation: str
    layer_norm: bool
    dtype: jnp.dtype
    ends_dtype: jnp.dtype

    @property
    def chunks(self) -> int:
        """Chunks with a token."""
        return -(-self.length // self.chunk_len)

    @property
    def segments(self) -> int:
        """Segments with a token."""
        return -(-self.length // self.segment_len)

    @property
    def segment_chunks(self) -> int:
        """Chunks of the first segment; the last may have fewer."""
        return min(self.segment_len // self.chunk_len, self.chunks)

    @property
    def ragged(self) -> bool:
        """Whether the last chunk is partly padding."""
        return self.length % self.chunk_len != 0

    @property
    def gates(self) -> int:
        """Gates of a token."""
        return 4 if self.titans else 2

    @property
    def inner_outputs(self) -> bool:
        """Whether the loss that tokens are written by needs the memory's outputs."""
        return self.titans or self.layer_norm

    @property
    def state_matrices(self) -> int:
        """Matrices [head_dim, hidden] of a head's state."""
        return 4 if self.titans else 2


@dataclasses.dataclass(frozen=True)
class Config:
    """How a write is cut into steps.

    Attributes:
      heads: heads of a step, which hide each other's latencies; a divisor of the call's.
      span: chunks of a step; a divisor of a segment's. A gradient computes a span again from its
        start, which the forward pass writes down unless it is the initial state.

    Raises:
      InputError: a size below 1.
    """

    heads: int
    span: int

    def __post_init__(self) -> None:
        """Check what does not depend on the call."""
        for field in ("heads", "span"):
            if getattr(self, field) < 1:
                raise InputError(f"config.{field}", getattr(self, field), "at least 1")

    def check(self, call: Call) -> None:
        """Raise InputError if the steps do not suit a call."""
        for field, whole in (("heads", call.heads), ("span", call.segment_chunks)):
            if whole % getattr(self, field):
                raise InputError(f"config.{field}", getattr(self, field), f"a divisor of {whole}")


class Cost(NamedTuple):
    """What a call takes.

    Attributes:
      flops: floating-point operations of the products that the equations need; what a gradient
        computes again is left out.
      hbm_bytes: bytes between HBM and VMEM.
      vmem_bytes: bytes of VMEM that blocks and scratch fill.
    """

    flops: int
    hbm_bytes: int
    vmem_bytes: int


def default_config(call: Call, chip: pltpu.TpuInfo) -> Config | None:
    """Steps for a call on a chip; None if nothing fits into its VMEM.

    As many heads as hide latencies and as many chunks as fit beside them, but more heads only
    where enough chunks still fit and every core of the chip has some.
    """
    room, limit = vmem_room(chip), vmem_limit(chip)
    enough = min(-(-ENOUGH_TOKENS // call.chunk_len), call.segment_chunks)
    configs = [
        Config(heads, span)
        for heads in _divisors(call.heads)
        for span in _divisors(call.segment_chunks)
        if heads <= MOST_HEADS
    ]

    def fits(config: Config) -> bool:
        blocks = backward_cost(call, config).vmem_bytes
        return blocks <= room and blocks + _values_bytes(call, config) <= limit

    def merit(config: Config) -> tuple:
        spread = call.heads // config.heads % chip.num_cores == 0
        return config.span >= enough, spread, config.heads, config.span

    return max(filter(fits, configs), key=merit, default=None)


def _divisors(value: int) -> list[int]:
    return [i for i in range(1, value + 1) if value % i == 0]


def chunk_flops(call: Call) -> int:
    """FLOPs of one chunk of one head, forward.

    Products with a [head_dim, hidden] matrix, 2 chunk_len head_dim hidden each: one for the keys'
    hidden layer, one for the memory's output unless the loss needs none, one back through it; the
    query's two maps, and each map's update; Titans reads and updates the momentum as well, and its
    loss needs the output. The causal products within the chunk are two of width head_dim and two
    of width hidden.
    """
    products = 2 + call.inner_outputs + (2 + 2) * (2 if call.titans else 1)
    matrix = 2 * call.chunk_len * call.head_dim * call.hidden
    return products * matrix + 4 * call.chunk_len**2 * (call.head_dim + call.hidden)


def forward_cost(call: Call, config: Config, keep_starts: bool = False) -> Cost:
    """Cost of the forward kernel.

    Args:
      call: the call.
      config: its steps.
      keep_starts: whether the states at the starts of spans are written down.
    """
    tokens, gates, matrix, ends = _bytes(call)
    learned, final = 2 * matrix, (call.state_matrices + 2 * call.ragged) * matrix
    starts = call.state_matrices * matrix if keep_starts else 0
    chunk = 4 * tokens + gates
    vmem = learned + 2 * (config.span * chunk + ends + final + starts)
    hbm = (
        learned + call.chunks * chunk + call.segments * ends + final + spans(call, config) * starts
    )
    flops = call.heads * call.chunks * chunk_flops(call)
    return Cost(flops, call.heads * hbm, config.heads * vmem)


def backward_cost(call: Call, config: Config) -> Cost:
    """Cost of the backward kernel, which fills more VMEM than the forward one."""
    tokens, gates, matrix, ends = _bytes(call)
    learned, state = 2 * matrix, call.state_matrices * matrix
    final = state + 2 * call.ragged * matrix
    starts = state if needs_starts(call, config) else 0
    chunk = 7 * tokens + 2 * gates
    vmem = 2 * learned + final + 2 * (config.span * chunk + ends + starts)
    widths = 2 * round_up(call.hidden, LANES) + call.inner_outputs * round_up(call.head_dim, LANES)
    vmem += (config.span + 1) * state + config.span * call.chunk_len * 4 * widths
    hbm = 2 * learned + final + call.chunks * chunk + call.segments * ends
    hbm += spans(call, config) * starts
    # Each product has two gradients.
    flops = 2 * call.heads * call.chunks * chunk_flops(call)
    return Cost(flops, call.heads * hbm, config.heads * vmem)


def _values_bytes(call: Call, config: Config) -> int:
    """VMEM of the backward kernel's temporaries and spilled registers, found by compiling.

    So many times the numbers of a matrix, of a chunk's tokens and their hidden layer, and of the
    pairs of its tokens. Of float32 each factor of a product is cut into three parts, and those of
    many of a chunk's products are there at a time.
    """
    if call.dtype == jnp.float32:
        matrices, rows, pairs = (10, 52, 0) if call.titans else (11, 36, 0)
    else:
        matrices, rows, pairs = 0, 12, 12
    hidden, head_dim, chunk = (
        round_up(x, LANES) for x in (call.hidden, call.head_dim, call.chunk_len)
    )
    numbers = matrices * call.head_dim * hidden
    numbers += call.chunk_len * (rows * (hidden + head_dim) + pairs * chunk)
    return config.heads * 4 * numbers


def spans(call: Call, config: Config) -> int:
    """Spans of a call."""
    return -(-call.chunks // config.span)


def needs_starts(call: Call, config: Config) -> bool:
    """Whether some span starts from another state than the initial one."""
    return config.span < (call.segment_chunks if call.independent else call.chunks)


def _bytes(call: Call) -> tuple[int, int, int, int]:
    """Bytes of one array of a chunk's tokens, of its gates, of a matrix, and of a segment's end."""
    tokens = call.chunk_len * round_up(call.head_dim, LANES) * call.dtype.itemsize
    gates = 8 * round_up(call.chunk_len, LANES) * 4
    matrix = call.head_dim * round_up(call.hidden, LANES)
    return tokens, gates, 4 * matrix, 2 * call.ends_dtype.itemsize * matrix
