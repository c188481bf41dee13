"""Where the time goes, and the warning where one part takes too long."""

import time

import pytest

from mc_jax.training import train
from mc_jax.training.metrics import read
from mc_jax.training.phases import Phases


def test_the_parts_make_up_the_whole(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    phases = Phases()
    now[0] = 3.0
    phases.enter("step")
    now[0] = 7.0
    with phases.phase("data"):
        now[0] = 8.0
        assert phases.current == "data"
    assert phases.current == "step"
    now[0] = 10.0
    found = phases.numbers()
    assert found == {
        "goodput": 0.6,
        "seconds_in_start": 3.0,
        "seconds_in_step": 6.0,
        "seconds_in_data": 1.0,
    }


def test_a_phase_that_is_stuck_is_named_once(capfd):
    phases = Phases(stuck_after=0.1)
    with phases.phase("data"):
        time.sleep(0.5)
    phases.close()
    said = capfd.readouterr().err
    assert said.count("train: in phase 'data' for 0 s now; is it stuck?") == 1
    assert "test_a_phase_that_is_stuck_is_named_once" in said


@pytest.mark.usefixtures("compile_once")
def test_a_run_says_where_its_time_went(config, tmp_path):
    with config.unlocked():
        config.train.update(profile=(3, 4), checkpoint_minutes=1e-9, checkpoint_every=100)
    train(config, tmp_path)
    last = read(tmp_path / "metrics.jsonl")[-1]
    spent = {name for name in last if name.startswith("seconds_in_")}
    phases = ("start", "step", "data", "evaluation", "checkpoint")
    assert spent == {f"seconds_in_{name}" for name in phases}
    assert 0 < last["goodput"] < 1
    # By the clock at step 10, at the measurements besides.
    assert sorted(int(x.name) for x in (tmp_path / "checkpoints").glob("[0-9]*")) == [10, 12]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
