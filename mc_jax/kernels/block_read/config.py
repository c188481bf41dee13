"""What a read of chosen memories is made of: its static facts, its blocks, and what it costs."""

import dataclasses
import math

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import vmem_room
from mc_jax.errors import InputError
from mc_jax.kernels.deep_read.config import NARROW_GENERATION
from mc_jax.kernels.tiles import LANES, round_up

# Tokens that are read at a time, and most of a grid step.
PARTS = (512, 384, 256, 128)
MOST_TOKENS = 1024
# Most elements of a part's hidden layer, of which the backward kernel holds several arrays.
MOST_HIDDEN = 512 * 512


@dataclasses.dataclass(frozen=True)
class Call:
    """Static facts of one head's read.

    Attributes:
      blocks: blocks of tokens.
      size: tokens of a block.
      reads: memories that each block reads.
      memories: cached memories.
      shape: of a matrix, (out, in), or of an MLP's second one, (head_dim, hidden).
      dtype: type of the inputs and of products.
      activation: that of MLP memories; None for matrices.
      layer_norm: whether an MLP memory's output is normalised.
    """

    blocks: int
    size: int
    reads: int
    memories: int
    shape: tuple[int, int]
    dtype: jnp.dtype
    activation: str | None = None
    layer_norm: bool = False

    @property
    def hidden(self) -> int | None:
        """Width of an MLP memory's hidden layer; None for matrices."""
        return None if self.activation is None else self.shape[1]

    @property
    def out(self) -> int:
        """Rows of the outputs."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Rows of the inputs."""
        return self.shape[1] if self.hidden is None else self.shape[0]

    @property
    def tokens(self) -> int:
        """Tokens of all blocks."""
        return self.blocks * self.size


@dataclasses.dataclass(frozen=True)
class Config:
    """How a read is cut.

    Attributes:
      part: tokens that read a memory at a time, of one block; a multiple of 128.
      parts: parts of a grid step.
      resident: memories in VMEM at a time in the forward kernel.
      resident_backward: the same in the backward kernel.
      group: reads that the forward kernel makes side by side to hide latencies.
      group_backward: the same in the backward kernel.
      narrow: whether activations are computed in bfloat16, for chips whose vector units can.

    Raises:
      InputError: a size that is not allowed.
    """

    part: int
    parts: int
    resident: int
    resident_backward: int
    group: int = 4
    group_backward: int = 2
    narrow: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of a grid step."""
        return self.part * self.parts

    def __post_init__(self) -> None:
        """Check what does not depend on the call."""
        if self.part < 1 or self.part % LANES:
            raise InputError("config.part", self.part, f"a multiple of {LANES}")
        for field in ("parts", "resident", "resident_backward", "group", "group_backward"):
            if getattr(self, field) < 1:
                raise InputError(f"config.{field}", getattr(self, field), "at least 1")

    def check(self, call: Call) -> None:
        """Raise InputError if the blocks do not suit a call."""
        if call.size % self.part:
            raise InputError("config.part", self.part, f"a divisor of a block's {call.size} tokens")
        if call.tokens % self.tokens:
            allowed = f"a divisor of the call's {call.tokens // self.part} parts"
            raise InputError("config.parts", self.parts, allowed)
        if self.narrow and call.dtype != jnp.bfloat16:
            raise InputError("config.narrow", True, f"False for {call.dtype}")


def default_config(call: Call, chip: pltpu.TpuInfo) -> Config | None:
    """Blocks for a call on a chip; None if it has none, or nothing fits into its VMEM."""
    hidden = call.hidden or 1
    sizes = [n for n in PARTS if call.size % n == 0 and n * hidden <= MOST_HIDDEN]
    if not sizes and call.size % LANES == 0:
        sizes = [LANES]
    room = vmem_room(chip)
    resident, backward = (
        min(call.memories, int(room // size))
        for size in (_memory_bytes(call), _memory_bytes_backward(call))
    )
    if not sizes or not backward:
        return None
    part = sizes[0]
    all_parts = call.tokens // part
    parts = max(n for n in range(1, max(1, MOST_TOKENS // part) + 1) if all_parts % n == 0)
    narrow = call.dtype == jnp.bfloat16 and chip.generation >= NARROW_GENERATION
    return Config(part, parts, resident, backward, narrow=narrow)


def _weights(call: Call) -> int:
    """Elements of a memory in VMEM, whose lanes are filled up."""
    if call.hidden is None:
        return call.out * round_up(call.width, LANES)
    return 2 * math.prod(round_up(size, LANES) for size in call.shape)


def _memory_bytes(call: Call) -> int:
    """VMEM of one memory in the forward kernel: two buffers."""
    return 2 * call.dtype.itemsize * _weights(call)


def _memory_bytes_backward(call: Call) -> int:
    """VMEM of one memory in the backward kernel: one buffer in, one out, and the running sum."""
    return (2 * call.dtype.itemsize + 4) * _weights(call)


def vmem_bytes(call: Call, config: Config) -> int:
    """VMEM of the backward kernel, the larger one."""
    arrays = 4 * call.dtype.itemsize * call.width + 4 * (call.width + 2 * call.out)
    lines = 4 * 4 * round_up(call.reads, 8)
    weights = config.resident_backward * _memory_bytes_backward(call)
    return weights + config.tokens * (arrays + lines)


def flops(call: Call, backward: bool = False) -> int:
    """Floating-point operations of the products, if every block reads as many as it can.

    A read takes one product of a matrix, two of an MLP. Going back takes gradients of inputs and
    all maps, and of an MLP the hidden layer again with its gradient; with a norm the output too.
    """
    products = 2 if backward else 1
    if call.hidden is not None:
        products = (6 if call.layer_norm else 5) if backward else 2
    return products * 2 * math.prod(call.shape) * call.tokens * call.reads


def hbm_bytes(call: Call, backward: bool = False) -> int:
    """Bytes between HBM and VMEM, every array once."""
    sides, maps = 2 if backward else 1, 1 if call.hidden is None else 2
    memories = sides * call.memories * maps * math.prod(call.shape)
    lines = 4 * (sides * call.reads + call.out)
    narrow = call.dtype.itemsize
    return call.tokens * (lines + narrow * sides * call.width) + narrow * memories
