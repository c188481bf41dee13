"""A document once read, kept on disk to go on from."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mc_jax.caching import FORMS
from mc_jax.errors import InputError
from mc_jax.inference import arrays
from mc_jax.inference.storage import Keeper, Storage, memory_form
from mc_jax.model import LanguageModel, ModelConfig
from mc_jax.model.cache import ModelCache
from mc_jax.typing import Array, Float, PyTree

_MODEL = "mc_jax.model"
_FORM = "mc_jax.memories"


class Session(NamedTuple):
    """What `prefill` returned: all that is needed to go on."""

    logits: Float[Array, "batch vocab"]
    cache: ModelCache


def fingerprint(config: ModelConfig, params: PyTree) -> str:
    """What is the same for two models only if they are the same, however they are computed."""
    values = dataclasses.asdict(config)
    memory, attention = values["memory"], values["attention"]
    del values["remat"], memory["implementation"], attention["implementation"]
    del memory["exchange"], memory["placement"]
    weights = arrays.digest(arrays.named(jax.device_get(params)))
    return json.dumps(values, sort_keys=True) + weights


def save_session(path: Path, config: ModelConfig, params: PyTree, session: Session) -> None:
    """Write a session, bit for bit.

    Args:
      path: a safetensors file.
      config: the model.
      params: its parameters.
      session: what it has read.

    Raises:
      InputError: the file cannot be written.
    """
    about = {_MODEL: fingerprint(config, params)}
    if (form := memory_form(config, session.cache)) is not None:
        about[_FORM] = form
    arrays.write(path, session, about)


def load_session(path: Path, config: ModelConfig, params: PyTree) -> Session:
    """Read a session, all of it into the device's memory.

    Args:
      path: what `save_session` wrote.
      config: the model that it belongs to.
      params: its parameters.

    Raises:
      InputError: no such file, one that is not whole, or another model's.
    """
    found, about = arrays.read(path)
    if about.get(_MODEL) != fingerprint(config, params):
        kind = "no session" if _MODEL not in about else "a session of another model"
        raise InputError(str(path), kind, "a session that this very model saved")

    def one_token(params: PyTree) -> Session:
        extended = LanguageModel(config).apply(
            {"params": params}, jnp.zeros((1, 1), jnp.int32), method=LanguageModel.extend
        )
        session = Session(*extended)
        form = about.get(_FORM)
        keeper = Keeper(config, Storage(form=form if form in FORMS else None), None)
        return session._replace(cache=keeper.keep(session.cache))

    # The number of sequences and the room are the file's.
    like = jax.eval_shape(one_token, params)
    return arrays.as_tree(path, found, like, shapes=False)
