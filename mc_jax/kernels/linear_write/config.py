"""What a write of matrix memories is made of: its static facts, its steps, and what it costs."""

import dataclasses

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mc_jax.device import vmem_room
from mc_jax.errors import InputError
from mc_jax.kernels.tiles import LANES, round_up

# Heads of a step: enough to make up for starting it, and few enough to compile fast.
MOST_HEADS = 4
# Tokens of a chunk: products of its pairs cost as much as those with a state of 128 by 128.
MOST_TOKENS, ENOUGH_TOKENS, LEAST_TOKENS = 256, 64, 16


@dataclasses.dataclass(frozen=True)
class Call:
    """Static facts of a write.

    Attributes:
      heads: independent memories, of all sequences.
      length: tokens.
      head_dim: width of tokens.
      segment_len: tokens of a segment.
      independent: whether every segment starts from nothing.
      dtype: type of the tokens and of products.
    """

    heads: int
    length: int
    head_dim: int
    segment_len: int
    independent: bool
    dtype: jnp.dtype

    @property
    def segments(self) -> int:
        """Segments with a token."""
        return -(-self.length // self.segment_len)


@dataclasses.dataclass(frozen=True)
class Config:
    """How a write is cut into steps.

    Attributes:
      heads: heads of a step, a divisor of the call's.
      tokens: tokens of a chunk, a multiple of 16 and a divisor of a segment's. The result does not
        depend on it.

    Raises:
      InputError: a size that is not allowed.
    """

    heads: int
    tokens: int

    def __post_init__(self) -> None:
        """Check what does not depend on the call."""
        if self.heads < 1:
            raise InputError("config.heads", self.heads, "at least 1")
        if self.tokens < LEAST_TOKENS or self.tokens % LEAST_TOKENS:
            raise InputError("config.tokens", self.tokens, f"a multiple of {LEAST_TOKENS}")

    def check(self, call: Call) -> None:
        """Raise InputError if the steps do not suit a call."""
        for field, whole in (("heads", call.heads), ("tokens", call.segment_len)):
            if whole % getattr(self, field):
                raise InputError(f"config.{field}", getattr(self, field), f"a divisor of {whole}")

    def chunks(self, call: Call) -> int:
        """Chunks with a token."""
        return -(-call.length // self.tokens)

    def segment_chunks(self, call: Call) -> int:
        """Chunks of a whole segment."""
        return call.segment_len // self.tokens

    def carries(self, call: Call) -> bool:
        """Whether some chunk starts from another state than nothing."""
        together = self.segment_chunks(call) if call.independent else self.chunks(call)
        return min(together, self.chunks(call)) > 1


def chunk_tokens(segment_len: int) -> int | None:
    """Tokens of a chunk for segments of so many; None if they cannot be cut well.

    A segment is a chunk if it is short, and else is cut into none so short that their states would
    take more memory than their tokens.
    """
    if segment_len <= MOST_TOKENS:
        return None if segment_len % LEAST_TOKENS else segment_len
    sizes = range(MOST_TOKENS, ENOUGH_TOKENS - 1, -LEAST_TOKENS)
    return next((size for size in sizes if segment_len % size == 0), None)


def default_config(call: Call, chip: pltpu.TpuInfo) -> Config | None:
    """Steps for a call on a chip; None if its segments cannot be cut, or do not fit."""
    tokens = chunk_tokens(call.segment_len)
    if tokens is None:
        return None
    room = vmem_room(chip)
    configs = (Config(h, tokens) for h in range(1, MOST_HEADS + 1) if call.heads % h == 0)
    fitting = [config for config in configs if vmem_bytes(call, config) <= room]

    def merit(config: Config) -> tuple:
        return call.heads // config.heads % chip.num_cores == 0, config.heads

    return max(fitting, key=merit, default=None)


def vmem_bytes(call: Call, config: Config) -> int:
    """VMEM of the backward kernel, the larger one: blocks, the state, and a head's products."""
    width = round_up(call.head_dim, LANES)
    tokens = 7 * 2 * config.tokens * width * call.dtype.itemsize
    states = 5 * call.head_dim * width * 4
    pairs = 4 * config.tokens * round_up(config.tokens, LANES) * 4
    return config.heads * (tokens + states) + pairs


def flops(call: Call, config: Config, backward: bool = False) -> int:
    """Floating-point operations of the products that the equations need.

    A chunk's tokens meet each other in two products, of which causality leaves half, and the state
    in one that writes it and, where there is one from before, one that reads it. Each has two
    gradients.
    """
    pairs = 2 * config.tokens * (config.tokens + 1) * call.head_dim
    state = 2 * (1 + config.carries(call)) * config.tokens * call.head_dim**2
    return (2 if backward else 1) * call.heads * config.chunks(call) * (pairs + state)


def hbm_bytes(call: Call, config: Config, backward: bool = False) -> int:
    """Bytes between HBM and VMEM, every array once.

    A forward pass that is differentiated also writes the states that the backward pass reads.
    """
    tokens = (7 if backward else 4) * call.length * call.head_dim * call.dtype.itemsize
    states = config.chunks(call) if backward and config.carries(call) else 0
    lines = (2 if backward else 1) * 4 * call.length
    return call.heads * (tokens + lines + 4 * (call.segments + states) * call.head_dim**2)
