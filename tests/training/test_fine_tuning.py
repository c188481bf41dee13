"""Runs that start from another one's parameters and train some of them."""

import json
import shutil

import jax
import numpy as np
import pytest

from configs import finetune_gate, tiny
from mc_jax.errors import InputError
from mc_jax.training import load, train
from mc_jax.training.experiment import check
from mc_jax.training.fine_tuning import name_of, other_params


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps without caching."""
    config = tiny.get_config("mqar")
    config.model.update(vocab_size=64, num_layers=1, dim=16, mlp_dim=16)
    config.model.memory.aggregation = "none"
    config.data.length = 32
    config.train.update(steps=2, eval_every=2, tensorboard=False)
    folder = tmp_path_factory.mktemp("plain")
    train(config.lock(), folder)
    return folder


@pytest.fixture
def plain(trained, tmp_path):
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "plain")


def tuning(plain, **changes):
    config = finetune_gate.get_config(str(plain))
    config.train.update(steps=2, eval_every=2, checkpoint_every=1, tensorboard=False, **changes)
    # Recall has texts of one length only.
    config.model.memory.segment_len = config.model.memory.chunk_len
    return config.lock()


def named(params):
    return {name_of(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(params)}


def test_only_the_gate_is_trained(plain, tmp_path, monkeypatch):
    config = tuning(plain)
    train(config, tmp_path / "tuned")
    before, after = (named(load(folder, "latest").params) for folder in (plain, tmp_path / "tuned"))
    first = named(load(tmp_path / "tuned", 1).params)
    new = {"layers_0/block_0/mixer/score/query/kernel"}
    assert after.keys() - before.keys() == new
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], name)
    for name in new:
        assert np.abs(after[name] - first[name]).max() > 0
    # It goes on without the run that it began with.
    shutil.rmtree(plain)
    with config.unlocked():
        config.train.steps = 3
    assert train(config, tmp_path / "tuned").step == 3


def test_what_is_frozen_has_no_moments(plain):
    from mc_jax.model import LanguageModel
    from mc_jax.training.optimizer import make_optimizer

    experiment = check(tuning(plain))
    model = LanguageModel(experiment.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    state = jax.eval_shape(make_optimizer(experiment.train).init, shapes)
    size = experiment.model.dim**2
    assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == 2 * size


@pytest.mark.parametrize(
    ("changes", "field", "part"),
    [
        ({"train.init_from": "/no/run"}, "train.init_from", "the workdir of a run"),
        ({"train.trainable": "("}, "train.trainable", "a regular expression"),
        ({"train.trainable": "gtae"}, "train.trainable", "mixer/score/query/kernel"),
        ({"train.trainable": "conv"}, "train.init_from", "mixer/score/query/kernel"),
        ({"model.dim": 32}, "train.init_from", "(64, 32), as this model has it"),
        ({"model.num_layers": 2}, "train.init_from", "layers_1/block_0"),
        ({"model.tie_embeddings": True, "model.mlp_dim": 0}, "train.init_from", "without this"),
    ],
)
def test_what_does_not_fit(plain, changes, field, part):
    config = tuning(plain)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(InputError) as error:
        experiment = check(config)
        other_params(experiment.model, experiment.train)
    assert error.value.field == field
    assert part in str(error.value)


def test_the_config_needs_a_run_without_caching(plain):
    for argument in ("", "/no/run", f"{plain},grm,context,more"):
        with pytest.raises(InputError, match="finetune_gate.py:FOLDER"):
            finetune_gate.get_config(argument)
    path = plain / "config.json"
    experiment = json.loads(path.read_text())
    experiment["model"]["memory"]["aggregation"] = "grm"
    path.write_text(json.dumps(experiment))
    with pytest.raises(InputError, match="without caching"):
        finetune_gate.get_config(str(plain))
