"""What a read of matrix memories is made of: its static facts, its blocks, and what it costs."""

import dataclasses
import itertools

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import vmem_limit, vmem_room
from mc_jax.errors import InputError
from mc_jax.kernels import reading
from mc_jax.kernels.tiles import LANES, round_up

SCALES = ("outputs", "inputs")


@dataclasses.dataclass(frozen=True)
class Call(reading.Call):
    """Static facts of one head's read.

    Attributes:
      out: rows of a memory.
      width: columns of a memory, and so the width of the queries.
      dtype: type of the queries and of products.
    """

    out: int
    width: int
    dtype: jnp.dtype


@dataclasses.dataclass(frozen=True)
class Config:
    """How a read is cut into blocks.

    Attributes:
      tokens: tokens of a block, a multiple of 128.
      resident: memories in VMEM at a time; all of them, or a multiple of 8.
      group: memories of one product, a power of two.
      scale: where gates are applied. "outputs": queries meet every memory as they are and what
        comes out is weighted. "inputs": queries are weighted first and several memories share one
        sum, which fills a matrix unit that is wider than a head.

    Raises:
      InputError: a size that is not allowed.
    """

    tokens: int
    resident: int
    group: int
    scale: str

    def __post_init__(self) -> None:
        """Check what does not depend on the call."""
        if self.tokens < 1 or self.tokens % LANES:
            raise InputError("config.tokens", self.tokens, f"a multiple of {LANES}")
        if self.resident < 1:
            raise InputError("config.resident", self.resident, "at least 1")
        if self.group < 1 or self.group & (self.group - 1):
            raise InputError("config.group", self.group, "a power of two")
        if self.scale not in SCALES:
            raise InputError("config.scale", self.scale, " | ".join(SCALES))

    def check(self, memories: int) -> None:
        """Raise InputError if the blocks do not suit a call with so many memories."""
        if self.resident < memories and self.resident % 8:
            raise InputError(
                "config.resident", self.resident, f"a multiple of 8, or all {memories} memories"
            )


def default_config(call: Call, chip: pltpu.TpuInfo) -> Config | None:
    """Blocks for a call on a chip, whatever its `tokens`; None if nothing fits into its VMEM."""
    # The narrower side is weighted, unless the inputs of one memory do not fill the matrix unit.
    after = call.width % chip.mxu_column_size == 0 and call.out <= call.width
    # Programs grow with all three; large matrices fill the matrix unit without.
    large = after or call.out * call.width > LANES**2
    sizes = (512, 384, 256, 128) if large else (1024, 512, 384, 256, 128)
    blocks = sorted(sizes, key=lambda size: (round_up(call.length, size), -size))
    groups = (8, 4, 2, 1) if large else (32, 16, 8, 4, 2, 1)
    for group, block in itertools.product(groups, blocks):
        resident = _resident(call, block, vmem_room(chip))
        config = Config(block, resident, group, "outputs" if after else "inputs")
        if vmem_bytes(call, config) + _values_bytes(call, config) <= vmem_limit(chip):
            return config
    return None


def _resident(call: Call, block: int, room: float) -> int:
    """Memories in VMEM at a time: all, or a multiple of 8 that fits; not fewer than 8."""
    # A block's gates of all memories are kept, and the memories' descriptors with their gradients;
    # to select the best, logits and weights once more.
    beside = 4 * call.memories * (3 * block + 4 * call.head_dim)
    fitting = max(int(room) - beside, 0) // _memory_bytes(call)
    return call.memories if call.memories <= max(fitting, 8) else max(fitting // 8 * 8, 8)


def _memory_bytes(call: Call) -> int:
    """VMEM of one memory in the backward kernel: two buffers in, two out, and the running sum."""
    return call.out * round_up(call.width, LANES) * (4 * call.dtype.itemsize + 4)


def _values_bytes(call: Call, config: Config) -> int:
    """VMEM of what the backward kernel has of a product between instructions, found by compiling.

    Weighted tokens of each of its memories, twice, the turned memories and their gradients.
    """
    weighted = 2 * config.tokens * (call.width if config.scale == "inputs" else call.out)
    memory = call.out * call.width
    return config.group * (call.dtype.itemsize * (weighted + memory) + 4 * memory)


def vmem_bytes(call: Call, config: Config) -> int:
    """VMEM of the backward kernel, the larger one."""
    lines = (1 if call.top_k is None else 3) * round_up(call.memories, 8) + config.resident
    arrays = token_rows(call, backward=True) * 2 * call.dtype.itemsize + 4 * call.width
    return config.resident * _memory_bytes(call) + config.tokens * (arrays + 4 * lines)


def token_rows(call: Call, backward: bool) -> int:
    """Rows of all arrays of a head whose columns are tokens."""
    inputs, outputs, scored = (2, 1, 2) if backward else (1, 1, 1)
    if call.routed:
        # Going back, the outputs are read as well.
        return inputs * call.width + (outputs + backward) * call.out + scored * call.head_dim
    return inputs * call.width + outputs * call.out


def flops(call: Call, backward: bool = False) -> int:
    """Floating-point operations of the products that a head's read needs.

    A read is one product of a matrix, for every memory that a token sees; going back takes two,
    for queries and memories.
    """
    return (2 if backward else 1) * 2 * call.out * call.width * call.reads(call.memories)


def hbm_bytes(call: Call, backward: bool = False) -> int:
    """Bytes between HBM and VMEM, every array once."""
    memories = (2 if backward else 1) * call.memories * call.out * call.width
    return call.dtype.itemsize * (token_rows(call, backward) * call.tokens + memories)
