"""Reading cached matrix memories."""

from mc_jax.kernels.linear_read.api import linear_read, unsupported
from mc_jax.kernels.linear_read.config import Config

__all__ = ["Config", "linear_read", "unsupported"]
