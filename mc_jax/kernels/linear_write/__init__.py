"""Compressing the segments of a sequence into matrix memories, and reading the running one."""

from mc_jax.kernels.linear_write.api import linear_write, unsupported
from mc_jax.kernels.linear_write.config import (
    Call,
    Config,
    chunk_tokens,
    default_config,
    flops,
    hbm_bytes,
    vmem_bytes,
)

__all__ = [
    "Call",
    "Config",
    "chunk_tokens",
    "default_config",
    "flops",
    "hbm_bytes",
    "linear_write",
    "unsupported",
    "vmem_bytes",
]
