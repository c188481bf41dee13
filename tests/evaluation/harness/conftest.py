"""A text model that was never trained, as an export, and what its logits say directly."""

import shutil
import sys
from typing import NamedTuple

import datasets
import jax
import numpy as np
import pytest

import eval as program
from configs import tiny
from mc_jax.data.tokenizers import ByteTokenizer
from mc_jax.inference.weights import Weights, export_weights
from mc_jax.model import LanguageModel, ModelConfig
from tests.evaluation.harness import rows

# Longer than any request here.
LENGTH = 1024


class Direct(NamedTuple):
    """The model without the adapter."""

    config: ModelConfig
    params: dict
    logits: object

    def score(self, context, continuation):
        """Log-likelihood in float64 of ids after others, and whether each is the likeliest."""
        ids = np.array([*context, *continuation], np.int32)
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(ids)] = ids
        places = np.arange(len(context) - 1, len(ids) - 1)
        logits = np.asarray(self.logits(self.params, padded)[0], np.float64)[places]
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return (
            float(logprobs[np.arange(len(places)), ids[places + 1]].sum()),
            bool((logits.argmax(-1) == ids[places + 1]).all()),
        )

    def text(self, context, continuation):
        """The same of texts of bytes."""
        return self.score(list(context.encode()) or [256], list(continuation.encode()))


@pytest.fixture(scope="session")
def experiment():
    config = tiny.get_config()
    config.model.update(num_layers=1, dim=8, mlp_dim=8)
    config.data.length = 64
    return config


@pytest.fixture(scope="session")
def direct(experiment):
    config = ModelConfig.from_dict(experiment.model.to_dict())
    model = LanguageModel(config)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    rng = np.random.default_rng(0)
    # Off the initial values, so that nothing is zero by accident.
    params = jax.tree.map(
        lambda x: np.asarray(x) + np.float32(0.3) * rng.normal(size=x.shape).astype(np.float32),
        params,
    )
    return Direct(config, params, jax.jit(lambda p, ids: model.apply({"params": p}, ids)))


@pytest.fixture(scope="session")
def exported(experiment, direct, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export_weights(folder, Weights(experiment.to_dict(), direct.params, 7))
    return folder


@pytest.fixture
def workdir(exported, tmp_path):
    """A copy of that folder, to write into."""
    return shutil.copytree(exported, tmp_path / "model")


@pytest.fixture(scope="session")
def subject(direct):
    from mc_jax.evaluation.harness.subject import Subject

    return Subject(7, direct.config, ByteTokenizer(), 64)


@pytest.fixture(scope="session", autouse=True)
def hub_cache(tmp_path_factory):
    """Data sets that are read are kept in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hub"))
        yield


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return rows.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def harness(monkeypatch):
    """Call the command with arguments."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["eval.py", "harness", *map(str, arguments)])
        assert program.main() == 0

    return run
