"""Whole runs in this process: stopping, going on, refusing, diverging."""

import os
import signal

import jax
import numpy as np
import pytest

from mc_jax.errors import InputError
from mc_jax.training import DivergedError, Outcome, load, loop, train
from mc_jax.training.metrics import is_time, read
from mc_jax.training.sharding import BATCH_KEYS

pytestmark = pytest.mark.usefixtures("compile_once")


def records(workdir):
    lines = read(workdir / "metrics.jsonl")
    return [{key: line[key] for key in line if not is_time(key)} for line in lines]


@pytest.fixture
def stop_at(monkeypatch):
    """Send this process SIGTERM when the batch of a step is taken."""
    to_devices = loop.to_devices

    def stop_at(step):
        taken = iter(range(step))

        def counted(batch, sharding, rows):
            # Also called by the evaluation, through its own name: not counted there.
            if next(taken, None) == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return to_devices(batch, sharding, rows)

        monkeypatch.setattr(loop, "to_devices", counted)

    return stop_at


def test_a_run_stopped_anywhere_is_the_undisturbed_run(config, tmp_path, stop_at):
    assert train(config, tmp_path / "whole") == Outcome(12)
    whole = records(tmp_path / "whole")
    assert [record["step"] for record in whole] == list(range(1, 13))
    assert [record["step"] for record in whole if "held_out_loss" in record] == [6, 12]
    assert len({record["loss"] for record in whole}) == 12

    pieces, done = tmp_path / "pieces", 0
    for stop in (1, 6, 11):  # after the first step, where a checkpoint is due, between two
        stop_at(stop - done)
        assert train(config, pieces) == Outcome(stop, signal.SIGTERM)
        assert load(pieces, "latest").step == stop
        done = stop
    stop_at(100)
    assert train(config, pieces) == Outcome(12)
    assert records(pieces) == whole
    jax.tree.map(
        np.testing.assert_array_equal,
        load(pieces, "latest").params,
        load(tmp_path / "whole", "latest").params,
    )
    assert (pieces / "curves.png").stat().st_size > 10_000


def test_what_a_begun_workdir_says(config, tmp_path, capsys):
    with config.unlocked():
        config.train.update(steps=2, eval_every=2)
    train(config, tmp_path)
    before = records(tmp_path)

    capsys.readouterr()
    assert train(config, tmp_path) == Outcome(2)
    assert "is finished, at step 2; raise config.train.steps" in capsys.readouterr().out

    config.model.dim = 32
    with pytest.raises(InputError, match=r"config: found \{'model.dim': 32\}.*model.dim=16"):
        train(config, tmp_path)
    assert records(tmp_path) == before
    config.model.dim = 16

    config.train.steps = 3
    assert train(config, tmp_path) == Outcome(3)
    assert "changed since step 2: train.steps: 2 -> 3" in capsys.readouterr().out
    assert records(tmp_path)[:2] == before and len(records(tmp_path)) == 3


def test_what_is_not_finite_stops_the_run(config, tmp_path):
    with config.unlocked():
        config.train.update(steps=8, eval_every=8, checkpoint_every=1)
    config.train.steps = 2
    train(config, tmp_path)
    config.train.update(steps=8, learning_rate=1e38)
    with pytest.raises(DivergedError) as error:
        train(config, tmp_path)
    message = str(error.value)
    assert "at step 4" in message and "\n" not in message
    assert "last good checkpoint is that of step 3" in message
    assert load(tmp_path, "latest").step == 3
    assert all(np.isfinite(record["loss"]) for record in records(tmp_path))


def test_nothing_but_the_batch_goes_to_the_devices(config, tmp_path, monkeypatch):
    """A batch that is still on the host has to be taken there by the step itself."""
    monkeypatch.setattr(loop, "to_devices", lambda batch, *rest: {k: batch[k] for k in BATCH_KEYS})
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        train(config, tmp_path)


def test_a_workdir_that_cannot_be_used(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="workdir: found .*file/run.*can be written"):
        train(config, tmp_path / "file" / "run")
    claim = loop._claim(tmp_path / "run")
    with pytest.raises(InputError, match="workdir: found .*no other run is using"):
        train(config, tmp_path / "run")
    claim.close()


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("train", {"steps": 0}, "train.steps: found 0; allowed: an integer >= 1"),
        ("train", {"warmup_fraction": 1.5}, "train.warmup_fraction: found 1.5"),
        ("train", {"learning_rate": -1.0}, "train.learning_rate: found -1.0"),
        ("train", {"beta2": 1.0}, "train.beta2: found 1.0"),
        ("train", {"grad_accum": 3}, "data.batch_size: found 4; allowed: a multiple of 3"),
        ("model", {"vocab_size": 20}, "model.vocab_size: found 20; allowed: at least 64"),
        ("model", {"num_heads": 3}, "model.num_heads: found 3"),
        ("data", {"batch_size": 0}, "data.batch_size: found 0"),
    ],
)
def test_bad_settings_leave_no_trace(config, tmp_path, section, changes, message):
    config[section].update(changes)
    with pytest.raises(InputError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
