"""The model that is evaluated, as far as it can be known without reading its weights."""

from pathlib import Path
from typing import NamedTuple

from mc_jax import data
from mc_jax.data import tokenizers
from mc_jax.data.config import Config
from mc_jax.data.tokenizers import Tokenizer
from mc_jax.errors import InputError
from mc_jax.evaluation.generation import open_model
from mc_jax.inference import cache_after_training
from mc_jax.model import ModelConfig


class Subject(NamedTuple):
    """What `describe` has found.

    Attributes:
      step: of the checkpoint.
      model: the config of the model, with what the options change.
      tokenizer: of the text that it was trained on.
      trained_length: tokens that it was trained on at a time.
    """

    step: int
    model: ModelConfig
    tokenizer: Tokenizer
    trained_length: int


def describe(
    workdir: Path,
    which: str | int = "latest",
    post_training_caching: float | None = None,
    tokenizer: str | None = None,
) -> Subject:
    """Read the config of a checkpoint and load its tokenizer.

    Args:
      workdir: of a run, or a folder that `eval.py export` wrote.
      which: of a run's checkpoints, see `mc_jax.training.load`.
      post_training_caching: the decay of `mc_jax.inference.cache_after_training`; None for the
        model as it is.
      tokenizer: where the tokenizer is now, as in `data.tokenizer`; None where it was in training.

    Raises:
      InputError: no such checkpoint, a model that was not trained on text, a tokenizer that cannot
        be loaded or has more ids than the model.
    """
    saved = open_model(workdir, which, weights=False)
    if saved.config.data.task != "text":
        raise InputError("workdir", str(workdir), "a model that was trained on text")
    model = ModelConfig.from_dict(saved.config.model.to_dict())
    length = saved.config.data.length
    if post_training_caching is not None:
        model = cache_after_training(model, length, post_training_caching)
    found = _tokenizer(saved.config.data, tokenizer)
    if found.vocab_size > model.vocab_size:
        spec = tokenizer or saved.config.data.tokenizer
        raise InputError(
            "--tokenizer" if tokenizer else "data.tokenizer",
            f"{spec} of {found.vocab_size} ids",
            f"that of the checkpoint, whose model has {model.vocab_size}",
        )
    return Subject(saved.step, model, found, length)


def _tokenizer(config: Config, moved: str | None) -> Tokenizer:
    try:
        return tokenizers.load(moved) if moved else data.tokenizer(config)
    except InputError as error:
        if moved:
            raise InputError("--tokenizer", error.found, error.allowed) from None
        allowed = f"{error.allowed}; if it has been moved, --tokenizer=KIND:PATH says where it is"
        raise InputError(error.field, error.found, allowed) from None
