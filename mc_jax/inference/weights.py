"""A model as a folder that other programs read: weights as safetensors, its config as JSON."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mc_jax.errors import InputError
from mc_jax.files import replace
from mc_jax.inference import arrays
from mc_jax.model import LanguageModel, ModelConfig
from mc_jax.typing import PyTree
from mc_jax.version import __version__

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class Weights(NamedTuple):
    """A model without its training.

    Attributes:
      config: the experiment that trained it, of JSON's types; the model is `config["model"]`.
      params: its parameters.
      step: after which it was exported.
    """

    config: dict[str, Any]
    params: PyTree
    step: int


def check_folder(folder: Path) -> None:
    """Refuse a folder whose config.json is not an export's: a run's, say, or another program's.

    Raises:
      InputError: it is one.
    """
    path = folder / CONFIG
    if not path.exists():
        return
    try:
        exported = "mc_jax" in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        exported = False
    if not exported:
        allowed = "a new file, or an earlier export's: this one is something else's"
        raise InputError(str(path), "a file that would be replaced", allowed)


def export_weights(folder: Path, weights: Weights) -> None:
    """Write model.safetensors, named by the modules that hold them, and config.json.

    Raises:
      InputError: the folder cannot be written, or `check_folder` refuses it.
    """
    check_folder(folder)
    about = {"mc_jax": __version__, "step": weights.step, "experiment": weights.config}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace(folder / CONFIG, json.dumps(about, indent=2).encode())
    except OSError as error:
        raise InputError(str(folder), error.strerror, "a folder that can be written") from None
    arrays.write(folder / WEIGHTS, weights.params, {"format": "mc_jax"})


def import_weights(folder: Path) -> Weights:
    """Read what `export_weights` wrote.

    Raises:
      InputError: a file that is missing, not whole, or not of the model that config.json describes.
    """
    experiment, step = read_config(folder)
    config = ModelConfig.from_dict(experiment["model"])
    found, _ = arrays.read(folder / WEIGHTS)
    tokens = jnp.zeros((1, 2), jnp.int32)
    like = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), tokens)["params"]
    return Weights(experiment, arrays.as_tree(folder / WEIGHTS, found, like), step)


def read_config(folder: Path) -> tuple[dict[str, Any], int]:
    """The experiment and the step that `export_weights` wrote down.

    Raises:
      InputError: a config.json that is missing, not whole, or of no model.
    """
    path = folder / CONFIG
    try:
        about = json.loads(path.read_text())
        experiment, step = about["experiment"], about["step"]
        ModelConfig.from_dict(experiment["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(str(path), repr(error)[:80], "the config.json of an export") from None
    return experiment, step
