"""The language model around the memories: blocks, memory layer, attention, and their cost."""

from mc_jax.model.config import AttentionConfig, MemoryConfig, ModelConfig, default_config
from mc_jax.model.flops import flops_per_token, param_count
from mc_jax.model.lm import LanguageModel
from mc_jax.model.memory_layer import RouterInputs

__all__ = [
    "AttentionConfig",
    "LanguageModel",
    "MemoryConfig",
    "ModelConfig",
    "RouterInputs",
    "default_config",
    "flops_per_token",
    "param_count",
]
