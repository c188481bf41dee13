"""The read of the online matrix memory, and its score, on a GPU."""

from mc_jax.kernels.chunk_read.scores import segment_scores
from mc_jax.kernels.chunk_read.triton import chunk_read, unsupported

__all__ = ["chunk_read", "segment_scores", "unsupported"]
