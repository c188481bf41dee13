"""The short convolution of queries, keys and values, with what follows it, on a GPU."""

from mc_jax.kernels.convolve.triton import convolve

__all__ = ["convolve"]
