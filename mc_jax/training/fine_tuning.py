"""Fine-tuning: a run that starts from another run's parameters and trains some of them."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mc_jax.errors import InputError
from mc_jax.model import LanguageModel, ModelConfig
from mc_jax.training.checkpoint import load
from mc_jax.training.config import TrainConfig
from mc_jax.typing import Array, PyTree


def name_of(path: tuple) -> str:
    """Name of a parameter, such as "layers_0/block_0/mixer/score/query/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def trains(pattern: str, path: tuple) -> bool:
    """Whether `train.trainable` is found in a parameter's name."""
    return re.search(pattern, name_of(path)) is not None


def freeze(pattern: str, params: PyTree) -> PyTree:
    """The same parameters, with gradients of 0 for those that are not trained."""
    if not pattern:
        return params
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if trains(pattern, path) else jax.lax.stop_gradient(x), params
    )


def check_trainable(model: ModelConfig, pattern: str) -> None:
    """Check that a pattern can be read and is found in the name of a parameter.

    Raises:
      InputError: it is not.
    """
    if not pattern:
        return
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError("train.trainable", pattern, f"a regular expression ({error})") from None
    names = list(_names(_shapes(model)))
    if not any(re.search(pattern, name) for name in names):
        allowed = "what is found in the name of a parameter: " + ", ".join(names)
        raise InputError("train.trainable", pattern, allowed)


def other_params(model: ModelConfig, train: TrainConfig) -> PyTree:
    """Parameters to start from: those of `train.init_from`, and None for those it has not.

    Raises:
      InputError: no such run; a parameter of another shape, or one that this model lacks; or one
        that the other lacks and that is not trained.
    """
    folder = Path(train.init_from)
    if not (folder / "checkpoints").is_dir():
        raise InputError("train.init_from", train.init_from, "the workdir of a run")
    saved = _names(load(folder, "latest").params)
    shapes = _names(_shapes(model))
    for name in saved.keys() - shapes.keys():
        raise InputError("train.init_from", name, "a run without this parameter, as this model is")
    for name, shape in shapes.items():
        if name in saved and saved[name].shape != shape.shape:
            found = f"{name} {saved[name].shape}"
            raise InputError("train.init_from", found, f"{shape.shape}, as this model has it")
        if name not in saved and train.trainable and not re.search(train.trainable, name):
            allowed = f"a run that has {name}, or a train.trainable that is found in its name"
            raise InputError("train.init_from", train.init_from, allowed)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: saved.get(name_of(path)), _shapes(model)
    )


def start_from(params: PyTree, others: PyTree) -> PyTree:
    """Initial parameters, in their places those of another run where it has them."""

    def place(other: Array | None, x: Array) -> Array:
        if other is None:
            return x
        whole = np.asarray(other)
        # Some of the places may be on other hosts, which `device_put` does not reach.
        return jax.make_array_from_callback(x.shape, x.sharding, lambda index: whole[index])

    return jax.tree.map(place, others, params, is_leaf=lambda x: x is None)


def _names(params: PyTree) -> dict:
    return {name_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}


def _shapes(model: ModelConfig) -> PyTree:
    tokens = jnp.zeros((1, 2), jnp.int32)
    return jax.eval_shape(LanguageModel(model).init, jax.random.key(0), tokens)["params"]
