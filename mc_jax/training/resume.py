"""Whether a run may go on with a config: what was begun with one model and data stays so."""

import json
from collections.abc import Mapping
from typing import Any

from mc_jax.data.config import default_config as data_config
from mc_jax.errors import InputError
from mc_jax.model import default_config as model_config
from mc_jax.sharding import default_config as mesh_config
from mc_jax.training.config import default_config as train_config

# The parts of an experiment that a checkpoint depends on ...
_FIXED = ("seed", "model", "data", "train.trainable")
# ... but for what only says how it is computed, or what is measured.
_FREE = (
    "model.remat",
    "model.memory.implementation",
    "model.memory.exchange",
    "model.memory.placement",
    "model.attention.implementation",
    "data.workers",
    "data.cache_dir",
    "data.eval_batch_size",
    "data.eval_batches",
    "data.mqar.eval_pairs",
)


def check_same_run(saved: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Compare the experiment of a checkpoint with the one that wants to go on from it.

    Args:
      saved: the checkpoint's experiment.
      config: the present one; both nested, of JSON's types.

    Returns:
      The changes that are allowed, one line each.

    Raises:
      InputError: the model, the data or the seed differs; every differing field is named.
    """
    changed = differences(saved, config)
    refused = [name for name, values in changed.items() if _fixed(name, *values)]
    if refused:
        found = {name: changed[name][1] for name in refused}
        allowed = ", ".join(f"{name}={changed[name][0]!r}" for name in refused)
        raise InputError(
            "config", found, f"the values of the run in this workdir: {allowed}; or another workdir"
        )
    return [f"{name}: {before!r} -> {now!r}" for name, (before, now) in changed.items()]


def differences(saved: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings in which two experiments differ, with the value in each; arguments as above."""
    # What did not exist yet when the run was begun had its default.
    before, now = _flat(_defaults()) | _flat(saved), _flat(config)
    return {
        name: (before.get(name), now.get(name))
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }


def _fixed(name: str, before: Any, now: Any) -> bool:
    """Whether a setting may not change from one value to another."""
    if name == "train.skip_nonfinite":
        # With any number the optimizer counts; without, it has no counter.
        return not (before and now)
    return name in _FIXED or (name.split(".")[0] in _FIXED and name not in _FREE)


def _defaults() -> dict[str, Any]:
    groups = {
        "model": model_config(),
        "data": data_config(),
        "train": train_config(),
        "mesh": mesh_config(),
    }
    return {name: json.loads(group.to_json()) for name, group in groups.items()}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} to {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
