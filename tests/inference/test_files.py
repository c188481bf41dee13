"""Sessions and exported weights: bit for bit, and refused where they do not fit."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import tiny as tiny_experiment
from mc_jax import InputError
from mc_jax.inference import prefill
from mc_jax.inference.session import Session, load_session, save_session
from mc_jax.inference.weights import Weights, export_weights, import_weights
from mc_jax.model import ModelConfig
from tests.model import tiny


@pytest.fixture(scope="module")
def lm():
    """A hybrid in bfloat16: its cache has arrays of three types, and None."""
    config = tiny.config(
        pattern=("memory", "attention", "sliding"),
        num_layers=3,
        dtype="bfloat16",
        memory={"rule": "titans", "aggregation": "ssc"},
        attention={"window": 5},
    )
    return config, tiny.init(dataclasses.replace(config, dtype="float32"))


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def read(lm, length=21):
    return Session(*prefill(*lm, tiny.tokens(2, length)))


@pytest.fixture
def saved(lm, tmp_path):
    path = tmp_path / "a.session"
    session = read(lm)
    save_session(path, *lm, session)
    return path, session


def test_a_session_goes_on_bit_for_bit(lm, saved):
    path, session = saved
    found = load_session(path, *lm)
    assert_same(found, session)
    more = tiny.tokens(2, 9, seed=1)
    assert_same(prefill(*lm, more, found.cache), prefill(*lm, more, session.cache))


def test_a_session_in_float64(tmp_path, x64):
    config = tiny.config(dtype="float64")
    params = jax.tree.map(lambda x: np.asarray(x, "float64"), tiny.init(tiny.config()))
    session = Session(*prefill(config, params, tiny.tokens(1, 9)))
    save_session(tmp_path / "a", config, params, session)
    assert_same(load_session(tmp_path / "a", config, params), session)


def test_a_session_of_another_model(lm, saved):
    path, _ = saved
    config, params = lm
    other = jax.tree.map(lambda x: x, params)
    other["embedding"] = np.asarray(params["embedding"]).copy()
    other["embedding"][3, 2] += 1e-3
    longer = dataclasses.replace(config.memory, segment_len=8)
    for model in ((config, other), (dataclasses.replace(config, memory=longer), params)):
        with pytest.raises(InputError, match="another model"):
            load_session(path, *model)
    # How it is computed is not what it is.
    ring = dataclasses.replace(config.memory, exchange="ring")
    load_session(path, dataclasses.replace(config, remat="full", memory=ring), params)


def test_a_session_that_is_not_whole(lm, saved):
    path, _ = saved
    content = path.read_bytes()
    for part in (content[:-1], content[:100], b"", b"text"):
        path.write_bytes(part)
        with pytest.raises(InputError, match="a.session"):
            load_session(path, *lm)
    changed = bytearray(content)
    changed[-5] ^= 1
    path.write_bytes(bytes(changed))
    with pytest.raises(InputError, match="other values"):
        load_session(path, *lm)
    with pytest.raises(InputError, match="no such file"):
        load_session(path.with_name("b"), *lm)


def test_weights_come_back_bit_for_bit(tmp_path):
    experiment = json.loads(tiny_experiment.get_config().to_json())
    config = ModelConfig.from_dict(experiment["model"])
    # However they lie in memory.
    params = jax.tree.map(np.asfortranarray, tiny.perturbed(config))
    folder = tmp_path / "new" / "model"
    export_weights(folder, Weights(experiment, params, 7))
    found = import_weights(folder)
    assert_same(found.params, params)
    assert (found.config, found.step) == (experiment, 7)
    assert ModelConfig.from_dict(ConfigDict(found.config).model.to_dict()) == config
    with (folder / "config.json").open() as file:
        assert json.load(file)["experiment"]["model"]["dim"] == config.dim


def test_names_of_weights(tmp_path, lm):
    """Those of the modules, as other programs show them."""
    import safetensors.numpy

    _, params = lm
    export_weights(tmp_path, Weights({"model": {}}, params, 0))
    names = safetensors.numpy.load_file(tmp_path / "model.safetensors").keys()
    assert {"embedding", "layers_0.block_0.mixer.qkv.kernel", "norm.scale"} <= set(names)


def test_an_export_replaces_exports_only(tmp_path):
    """A run, or another program's model, keeps its config.json."""
    weights = Weights({"model": {}}, {"embedding": np.ones(3, np.float32)}, 0)
    export_weights(tmp_path, weights)
    export_weights(tmp_path, weights)
    for content in ('{"model": {}}', "[]", "3", "text"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError, match="would be replaced"):
            export_weights(tmp_path, weights)
        assert (tmp_path / "config.json").read_text() == content


@pytest.mark.parametrize("damage", ["no config", "no json", "other model", "no weights"])
def test_weights_that_do_not_fit(tmp_path, damage):
    experiment = json.loads(tiny_experiment.get_config().to_json())
    params = tiny.init(ModelConfig.from_dict(experiment["model"]))
    export_weights(tmp_path, Weights(experiment, params, 7))
    config = tmp_path / "config.json"
    if damage == "no config":
        config.unlink()
    elif damage == "no json":
        config.write_text("{")
    elif damage == "other model":
        about = json.loads(config.read_text())
        about["experiment"]["model"]["dim"] *= 2
        config.write_text(json.dumps(about))
    else:
        (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError) as error:
        import_weights(tmp_path)
    part = "model.safetensors" if damage in ("other model", "no weights") else "config.json"
    assert part in error.value.field
