"""Inference: reading prompts into a growing cache, decoding, generating text."""

from mc_jax.inference.generation import Completion, generate, stream
from mc_jax.inference.post_training import cache_after_training
from mc_jax.inference.run import decode_step, prefill
from mc_jax.inference.sampling import Sampling
from mc_jax.inference.storage import Storage, memories_lost
from mc_jax.model.cache import ModelCache, make_room

__all__ = [
    "Completion",
    "ModelCache",
    "Sampling",
    "Storage",
    "cache_after_training",
    "decode_step",
    "generate",
    "make_room",
    "memories_lost",
    "prefill",
    "stream",
]
