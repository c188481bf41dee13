"""What a read of MLP memories is made of: its static facts, its blocks, and what it costs."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import vmem_room
from mc_jax.errors import InputError
from mc_jax.kernels import reading
from mc_jax.kernels.tiles import LANES, round_up

BLOCKS = (1024, 768, 512, 384, 256, 128)
# Most elements of a block's hidden layer, of which the backward kernel holds several arrays.
MOST_HIDDEN = 1024 * 512
# First generation of TPUs with vector units for bfloat16.
NARROW_GENERATION = 6
# Share of a read's multiplications below which gathering columns is faster, being less efficient.
WORTH_GATHERING, WORTH_GATHERING_BACKWARD = 0.95, 1.0
# The same forward where a matrix unit is wider than a head, which gathering cannot fill.
WORTH_GATHERING_WIDE = 0.6


@dataclasses.dataclass(frozen=True)
class Call(reading.Call):
    """Static facts of one head's read.

    Attributes:
      hidden: width of a memory's hidden layer.
      activation: the memory's activation.
      layer_norm: whether the memory's output is normalised.
      dtype: type of the queries and of products.
    """

    hidden: int
    activation: str
    layer_norm: bool
    dtype: jnp.dtype


@dataclasses.dataclass(frozen=True)
class Config:
    """How a read is cut into blocks.

    Attributes:
      tokens: tokens of a block, a multiple of `part`.
      part: tokens of a part of a block, a multiple of 128. A memory that some of a block's tokens
        do not see is read by the parts that do.
      resident: memories in VMEM at a time in the forward kernel; all, or a multiple of 8.
      resident_backward: the same in the backward kernel.
      group: memories that the forward kernel reads side by side to hide latencies, a power of two;
        twice as many where parts of a block read, one where their tokens are gathered.
      slots: columns that a block's tokens which selected a memory are gathered into in the forward
        kernel, a multiple of 128, for top-k reads; None evaluates a memory for all that see it.
      slots_backward: the same in the backward kernel.
      narrow: whether activations are computed in bfloat16, for chips whose vector units can.

    Raises:
      InputError: a size that is not allowed.
    """

    tokens: int
    part: int
    resident: int
    resident_backward: int
    group: int
    slots: int | None = None
    slots_backward: int | None = None
    narrow: bool = False

    def __post_init__(self) -> None:
        """Check what does not depend on the call."""
        for field, multiple in (("part", LANES), ("tokens", self.part or 1)):
            size = getattr(self, field)
            if size < 1 or size % multiple:
                raise InputError(f"config.{field}", size, f"a multiple of {multiple}")
        for field in ("resident", "resident_backward"):
            if getattr(self, field) < 1:
                raise InputError(f"config.{field}", getattr(self, field), "at least 1")
        if self.group < 1 or self.group & (self.group - 1):
            raise InputError("config.group", self.group, "a power of two")
        for field in ("slots", "slots_backward"):
            size = getattr(self, field)
            if size is not None and (size < 1 or size % LANES):
                raise InputError(f"config.{field}", size, f"a multiple of {LANES} | None")

    def check(self, call: Call) -> None:
        """Raise InputError if the blocks do not suit a call."""
        memories = call.memories
        slots = self.slots or self.slots_backward
        if slots is not None and not selects(call):
            raise InputError("config.slots", slots, "None: the call selects no memories")
        if self.narrow and call.dtype != jnp.bfloat16:
            raise InputError("config.narrow", True, f"False for {call.dtype}")
        for field in ("resident", "resident_backward"):
            size = getattr(self, field)
            if size < memories and size % 8:
                raise InputError(
                    f"config.{field}", size, f"a multiple of 8, or all {memories} memories"
                )

    def column_share(self, call: Call) -> float:
        """Cost of gathering and reading one column beside that of reading the whole block.

        A product with the weights takes `hidden` multiplications for each token and row of the
        head; gathering or scattering a column takes one for each token.
        """
        return 1 / call.hidden + 1 / self.tokens


def selects(call: Call) -> bool:
    """Whether tokens read fewer memories than they see."""
    return call.routed and call.top_k is not None and call.top_k < call.memories


class Cost(NamedTuple):
    """What one head's read takes.

    Attributes:
      flops: floating-point operations of the products that the equations need; what a gradient
        computes again for want of storage is part of them, reads that nobody needs are not.
      hbm_bytes: bytes between HBM and VMEM, every array once.
      vmem_bytes: bytes of VMEM that blocks and scratch fill.
    """

    flops: int
    hbm_bytes: int
    vmem_bytes: int


def default_config(call: Call, chip: pltpu.TpuInfo) -> Config | None:
    """Blocks for a call on a chip, whatever its `tokens`; None if nothing fits into its VMEM."""
    sizes = [size for size in BLOCKS if size * call.hidden <= MOST_HIDDEN] or [LANES]
    block = min(sizes, key=lambda size: (round_up(call.length, size), -size))
    part = 256 if block % 256 == 0 else block
    resident, backward = (
        _resident(call.memories, vmem_room(chip) // size)
        for size in (_memory_bytes(call), _memory_bytes_backward(call))
    )
    if not backward:
        return None
    narrow = call.dtype == jnp.bfloat16 and chip.generation >= NARROW_GENERATION
    config = Config(block, part, resident, backward, group=2, narrow=narrow)
    if not selects(call):
        return config
    # A memory is seen by half of the tokens, and its last columns are half empty.
    columns = 2 * block * call.top_k / call.memories + LANES / 2
    share = columns * config.column_share(call)
    wide = chip.mxu_column_size > call.head_dim
    worth = WORTH_GATHERING_WIDE if wide else WORTH_GATHERING
    return dataclasses.replace(
        config,
        slots=LANES if share < worth else None,
        slots_backward=LANES if share < WORTH_GATHERING_BACKWARD else None,
    )


def _resident(memories: int, fitting: float) -> int:
    return memories if memories <= fitting else int(fitting) // 8 * 8


def _weights(call: Call) -> int:
    """Elements of a memory in VMEM, whose lanes are filled up."""
    head_dim, hidden = (round_up(size, LANES) for size in (call.head_dim, call.hidden))
    return call.head_dim * hidden + call.hidden * head_dim


def _memory_bytes(call: Call) -> int:
    """VMEM of one memory in the forward kernel: two buffers."""
    return 2 * call.dtype.itemsize * _weights(call)


def _memory_bytes_backward(call: Call) -> int:
    """VMEM of one memory in the backward kernel: one buffer in, one out, and the running sum."""
    return (2 * call.dtype.itemsize + 4) * _weights(call)


def reads(call: Call) -> int:
    """Pairs of a token and a memory that it reads, for a sequence that starts here."""
    return call.reads(min(call.memories, call.top_k or call.memories))


def forward_cost(call: Call, config: Config) -> Cost:
    """Cost of the forward kernel: two products a read."""
    products, arrays = 2, 3 if call.routed else 2
    block = call.head_dim * config.tokens
    vmem = config.resident * _memory_bytes(call) + _gates_bytes(
        call, config, config.resident, config.slots
    )
    vmem += block * ((2 * arrays + 1) * call.dtype.itemsize + 4)
    return Cost(_flops(call, products), _hbm_bytes(call, arrays, 1), vmem)


def backward_cost(call: Call, config: Config) -> Cost:
    """Cost of the backward kernel.

    A read takes the hidden layer again, its gradient, and gradients of queries and both maps; with
    a norm the output again too.
    """
    products, arrays = 6 if call.layer_norm else 5, 6 if call.routed else 3
    resident = config.resident_backward
    block = call.head_dim * config.tokens
    vmem = resident * _memory_bytes_backward(call) + _gates_bytes(
        call, config, resident, config.slots_backward
    )
    wide = 3 if config.slots_backward else 1
    vmem += block * ((2 * arrays + wide) * call.dtype.itemsize + 4) + 4 * config.tokens * resident
    return Cost(_flops(call, products), _hbm_bytes(call, arrays, 2), vmem)


def _flops(call: Call, products: int) -> int:
    return products * 2 * call.head_dim * call.hidden * reads(call)


def _hbm_bytes(call: Call, arrays: int, weights: int) -> int:
    """Bytes of so many arrays of tokens and sets of all weights."""
    memories = weights * call.memories * 2 * call.head_dim * call.hidden
    lines = 8 * call.tokens + 4 * call.memories * call.head_dim if call.routed else 0
    return call.dtype.itemsize * (arrays * call.tokens * call.head_dim + memories) + lines


def _gates_bytes(call: Call, config: Config, resident: int, slots: int | None) -> int:
    """VMEM of the gates, and of the ranks, of a block of tokens."""
    lines = 2 if slots else 1
    return 4 * lines * config.tokens * round_up(call.memories, resident)
