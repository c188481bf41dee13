"""Memory Caching: recurrent models whose memory grows with the sequence (arXiv 2602.24281)."""

from mc_jax.caching import (
    Cache,
    explain,
    kv_cache_size,
    memory_caching,
    reserve,
    state_size,
    store,
)
from mc_jax.errors import InputError
from mc_jax.version import __version__

__all__ = [
    "Cache",
    "InputError",
    "__version__",
    "explain",
    "kv_cache_size",
    "memory_caching",
    "reserve",
    "state_size",
    "store",
]
