"""Reading matrix memories of logarithmic segments: one of each level for every segment."""

from mc_jax.kernels.level_read.api import level_read, takes_segments, unsupported

__all__ = ["level_read", "takes_segments", "unsupported"]
