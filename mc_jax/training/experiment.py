"""An experiment: a config whose settings have been checked, and what follows from them."""

import json
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mc_jax import data
from mc_jax.data.config import check as check_data
from mc_jax.errors import InputError
from mc_jax.model import ModelConfig, flops_per_token
from mc_jax.sharding import MeshConfig, check_model, ways
from mc_jax.training import metrics
from mc_jax.training.config import TrainConfig
from mc_jax.training.fine_tuning import check_trainable
from mc_jax.training.sharding import check_batch_size


class Experiment(NamedTuple):
    """What `check` has found usable."""

    config: ConfigDict
    model: ModelConfig
    train: TrainConfig
    mesh: MeshConfig

    @property
    def text(self) -> bool:
        """Whether tokens are text, measured in bits per byte."""
        return self.config.data.task == "text"

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.config.data.batch_size * self.config.data.length

    @property
    def flops(self) -> float:
        """Model FLOPs of one step; the backward pass counts twice the forward pass."""
        return 3 * self.tokens * flops_per_token(self.model, self.config.data.length)

    def to_json(self) -> dict[str, Any]:
        """The config, of JSON's types."""
        return json.loads(self.config.to_json())


def check(config: ConfigDict, read_data: bool = True) -> Experiment:
    """Check every setting that can be checked without computing, and whatever the devices are.

    Args:
      config: the experiment.
      read_data: whether the tokenizer's file is there, whose vocabulary the model has to hold.

    Raises:
      InputError: a setting that cannot be used.
    """
    model = ModelConfig.from_dict(config.model.to_dict())
    train = TrainConfig.from_dict(config.train.to_dict())
    check_trainable(model, train.trainable)
    metrics.check(train)
    check_data(config.data)
    needed = data.vocab_size(config.data) if read_data else 0
    if model.vocab_size < needed:
        allowed = f"at least {needed}, the data's vocabulary"
        raise InputError("model.vocab_size", model.vocab_size, allowed)
    # Runs that were begun before meshes had a group of their own shared the batch.
    mesh = MeshConfig.from_dict(config.get("mesh", ConfigDict()).to_dict())
    return Experiment(config, model, train, mesh)


def check_devices(experiment: Experiment, devices: int) -> None:
    """Check that an experiment can be split over so many devices.

    Raises:
      InputError: a setting that does not divide.
    """
    config, sizes = experiment.config, experiment.mesh.sizes(devices)
    check_model(sizes, experiment.model, config.data.length)
    experiment.model.check_context(sizes["context"], config.data.length)
    rows = ways(sizes, "batch")
    check_batch_size("data.batch_size", config.data.batch_size, rows, experiment.train.grad_accum)
    check_batch_size("data.eval_batch_size", config.data.eval_batch_size, rows)
