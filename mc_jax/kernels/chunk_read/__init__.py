"""The read of the online matrix memory, on a GPU."""

from mc_jax.kernels.chunk_read.triton import chunk_read, unsupported

__all__ = ["chunk_read", "unsupported"]
