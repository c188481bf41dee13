"""Caching for a model that was trained without (paper, §4.3)."""

import dataclasses

from mc_jax.errors import InputError
from mc_jax.model import ModelConfig


def cache_after_training(config: ModelConfig, length: int, decay: float = 0.5) -> ModelConfig:
    """The same model, whose memories' states are kept every training length and read.

    Each segment of `length` tokens is compressed afresh, as the model was trained to, and tokens
    read a moving average over the segments, without learned weights: the running memory weighs 1,
    the memory i segments back `decay**i` (all that lie `config.memory.position_slots - 1` or more
    segments back the same), and all are divided by their sum. Parameters stay as they are.

    Args:
      config: a model whose memory layers have aggregation="none".
      length: tokens that the model was trained on at a time.
      decay: what a memory's weight falls to with each segment back, above 0, up to 1.

    Raises:
      InputError: a model that was trained with caching or has no memory layer, or a length that
        chunks do not divide.
    """
    if "memory" not in config.pattern:
        raise InputError("model.pattern", config.pattern, "a model with memory layers")
    if config.memory.aggregation != "none":
        allowed = "'none': post-training caching is for models that were trained without caching"
        raise InputError("model.memory.aggregation", config.memory.aggregation, allowed)
    memory = dataclasses.replace(
        config.memory,
        aggregation="grm",
        gate="average",
        average_decay=decay,
        segment_len=length,
        segmentation="constant",
        write_mode="independent",
    )
    return dataclasses.replace(config, memory=memory)
