"""Caching the states of a model that was trained without."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny as tiny_experiment
from mc_jax import InputError
from mc_jax.evaluation import evaluate
from mc_jax.inference import cache_after_training, prefill
from mc_jax.model import LanguageModel
from mc_jax.training import train
from tests.model import tiny

LENGTH = 8


def trained(rule, **memory):
    return tiny.config({"rule": rule, "aggregation": "none", "chunk_len": 4, **memory})


def logits(config, params, ids):
    return np.asarray(LanguageModel(config).apply({"params": params}, ids))


@pytest.mark.parametrize("rule", ["linear", "swla", "dla", "titans"])
def test_the_same_parameters_read_their_past(rule):
    """Nothing changes up to the training length, something does behind it, and decoding agrees."""
    config = trained(rule)
    cached = cache_after_training(config, LENGTH)
    params, ids = tiny.perturbed(config), tiny.tokens(2, 40)
    fresh = tiny.quick_jit(LanguageModel(cached).init)(jax.random.key(0), ids)["params"]
    assert jax.tree.structure(fresh) == jax.tree.structure(params)
    plain, found = logits(config, params, ids), logits(cached, params, ids)
    np.testing.assert_allclose(found[:, :LENGTH], plain[:, :LENGTH], atol=1e-4)
    assert np.abs(found[:, LENGTH:] - plain[:, LENGTH:]).max() > 1e-2
    last, _ = prefill(cached, params, ids, piece=16)
    np.testing.assert_allclose(last, found[:, -1], atol=1e-4)


def test_equal_weights_of_linear_attention_change_nothing():
    """Segments of linear attention add up, and the layer norm takes their number away."""
    config = trained("linear")
    params, ids = tiny.perturbed(config), tiny.tokens(2, 40)
    found = logits(cache_after_training(config, LENGTH, decay=1.0), params, ids)
    np.testing.assert_allclose(found, logits(config, params, ids), atol=1e-3)


def test_a_memory_of_long_ago_hardly_counts():
    """With a small decay only the running segment is left: as if the text began there."""
    config = trained("linear", conv_width=1)
    params, ids = tiny.perturbed(config), tiny.tokens(2, 3 * LENGTH)
    found = logits(cache_after_training(config, LENGTH, decay=1e-9), params, ids)
    alone = logits(config, params, ids[:, 2 * LENGTH :])
    np.testing.assert_allclose(found[:, 2 * LENGTH :], alone, atol=1e-3)


def test_weights_of_the_average():
    """1, d, d^2, ... of running and cached memories, over their sum."""
    from mc_jax.evaluation.gates import gate_maps

    cached = cache_after_training(trained("linear"), LENGTH, decay=0.3)
    cached = dataclasses.replace(
        cached, memory=dataclasses.replace(cached.memory, position_slots=64)
    )
    ids = tiny.tokens(1, 4 * LENGTH)
    (layer,) = gate_maps(cached, LanguageModel(cached), tiny.perturbed(cached), jnp.asarray(ids[0]))
    expected = np.array([1, 0.3**3, 0.3**2, 0.3]) / (1 + 0.3 + 0.3**2 + 0.3**3)
    np.testing.assert_allclose(np.asarray(layer.weights)[:, -1], [expected] * 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "length", "decay", "field"),
    [
        (tiny.config({"aggregation": "grm"}), 8, 0.5, "model.memory.aggregation"),
        (tiny.config(pattern=("attention",)), 8, 0.5, "model.pattern"),
        (trained("linear"), 6, 0.5, "model.memory.segment_len"),
        (trained("linear"), 8, 0.0, "model.memory.average_decay"),
    ],
)
def test_refusals(config, length, decay, field):
    with pytest.raises(InputError) as error:
        cache_after_training(config, length, decay)
    assert error.value.field == field


def test_evaluation(tmp_path):
    """The run's own results stay; those with caching lie beside them and differ."""
    config = tiny_experiment.get_config()
    config.model.update(num_layers=1, dim=8, mlp_dim=8)
    config.model.memory.update(aggregation="none", rule="titans")
    config.data.length = 16
    config.train.update(steps=2, tensorboard=False)
    train(config.lock(), tmp_path)
    plain = evaluate(tmp_path, length=64)
    cached = evaluate(tmp_path, length=64, post_training=0.5)
    kept = json.loads((tmp_path / "eval" / "step_2.json").read_text())
    beside = json.loads((tmp_path / "eval" / "post_training" / "step_2.json").read_text())
    assert (kept["post_training_caching"], beside["post_training_caching"]) == (None, 0.5)
    assert plain["held_out"]["loss"] != cached["held_out"]["loss"]
    assert (tmp_path / "eval" / "post_training" / "loss_by_position.png").is_file()
    shutil.rmtree(tmp_path / "eval")
