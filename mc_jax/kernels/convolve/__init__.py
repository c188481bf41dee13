"""The short convolution of queries, keys and values, with what follows it, in one pass."""

from mc_jax.kernels.convolve.tiled import convolve_tiles, worthy_tile
from mc_jax.kernels.convolve.triton import convolve

__all__ = ["convolve", "convolve_tiles", "worthy_tile"]
