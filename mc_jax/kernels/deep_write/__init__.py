"""Compressing the segments of a sequence into MLP memories, and reading the online memory."""

from mc_jax.kernels.deep_write.api import deep_write, unsupported
from mc_jax.kernels.deep_write.config import Call, Config

__all__ = ["Call", "Config", "deep_write", "unsupported"]
