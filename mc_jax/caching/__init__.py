"""Caching: segments, gates and aggregations, and the core that joins them to a memory."""

from mc_jax.caching.api import memory_caching
from mc_jax.caching.cache import Cache, Memory, reserve
from mc_jax.caching.explain import explain
from mc_jax.caching.options import AGGREGATIONS, GATES, SEGMENTATIONS, WRITE_MODES, Options
from mc_jax.caching.size import kv_cache_size, state_size
from mc_jax.caching.storage import FORMS, store

__all__ = [
    "AGGREGATIONS",
    "FORMS",
    "GATES",
    "SEGMENTATIONS",
    "WRITE_MODES",
    "Cache",
    "Memory",
    "Options",
    "explain",
    "kv_cache_size",
    "memory_caching",
    "reserve",
    "state_size",
    "store",
]
