"""Reading memories that blocks of tokens have chosen."""

from mc_jax.kernels.block_read.api import block_read, call_of, unsupported
from mc_jax.kernels.block_read.config import Call, Config

__all__ = ["Call", "Config", "block_read", "call_of", "unsupported"]
