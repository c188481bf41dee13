"""Reading cached MLP memories."""

from mc_jax.kernels.deep_read.api import call_of, deep_read, unsupported
from mc_jax.kernels.deep_read.config import Call, Config

__all__ = ["Call", "Config", "call_of", "deep_read", "unsupported"]
