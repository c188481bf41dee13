"""Training: optimizer, step, checkpoints and the loop. `train` runs a whole experiment."""

from mc_jax.training.checkpoint import Saved, load
from mc_jax.training.config import TrainConfig, default_config
from mc_jax.training.experiment import Experiment, check
from mc_jax.training.hosts import HostLostError, join
from mc_jax.training.loop import Outcome, train
from mc_jax.training.recorder import DivergedError

__all__ = [
    "DivergedError",
    "Experiment",
    "HostLostError",
    "Outcome",
    "Saved",
    "TrainConfig",
    "check",
    "default_config",
    "join",
    "load",
    "train",
]
