"""Compressing the segments of a sequence into matrix memories, and reading the running one."""

from mc_jax.kernels.linear_write.api import linear_write, unsupported
from mc_jax.kernels.linear_write.config import (
    Call,
    Config,
    default_config,
    flops,
    hbm_bytes,
)

__all__ = [
    "Call",
    "Config",
    "default_config",
    "flops",
    "hbm_bytes",
    "linear_write",
    "unsupported",
]
