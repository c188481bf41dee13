"""Reading cached matrix memories."""

from mc_jax.kernels.linear_read.api import linear_read, unsupported
from mc_jax.kernels.linear_read.config import Call, Config

__all__ = ["Call", "Config", "linear_read", "unsupported"]
