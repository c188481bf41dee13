"""Updates that are left out since the gradient is not finite: counted, and so many in a row."""

import jax
import numpy as np
import pytest

from mc_jax.errors import InputError
from mc_jax.training import DivergedError, TrainConfig, load, loop, train
from mc_jax.training.metrics import read

pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture
def spoil(monkeypatch):
    """Make the weights of some steps' batches infinite."""
    to_devices = loop.to_devices

    def spoil(*steps):
        taken = iter(range(1, 1000))

        def spoiled(batch, *rest):
            if next(taken) in steps:
                batch = {**batch, "weights": np.full_like(batch["weights"], np.inf)}
            return to_devices(batch, *rest)

        monkeypatch.setattr(loop, "to_devices", spoiled)

    return spoil


def test_skipped_updates_are_counted(config, tmp_path, spoil):
    spoil(3, 5, 6)
    with config.unlocked():
        config.train.skip_nonfinite = 2
    train(config, tmp_path)
    records = read(tmp_path / "metrics.jsonl")
    assert [record["skipped"] for record in records] == [0, 0, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3]
    assert [record["skipped_in_a_row"] for record in records][:7] == [0, 0, 1, 0, 1, 2, 0]
    params = load(tmp_path, "latest").params
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    finite = [np.isfinite(record["loss"]) for record in records]
    assert finite == [step not in (3, 5, 6) for step in range(1, 13)]


def test_too_many_in_a_row_end_the_run(config, tmp_path, spoil):
    spoil(5, 6, 7)
    with config.unlocked():
        config.train.skip_nonfinite = 2
    with pytest.raises(DivergedError, match="at step 7; the last good checkpoint is that of step"):
        train(config, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(skip_nonfinite=-1), "train.skip_nonfinite: found -1; allowed: an integer >= 0"),
        (dict(profile=(5, 4)), "train.profile: found"),
        (dict(profile=(5,)), "train.profile: found"),
        (dict(stuck_minutes=-1.0), "train.stuck_minutes: found -1.0"),
        (dict(checkpoint_minutes=float("inf")), "train.checkpoint_minutes: found inf"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**change)
