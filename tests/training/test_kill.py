"""The program itself, killed and stopped at random moments of one run."""

import random
import signal

import pytest

from benchmarks.kill_resume import Job, differences

STEPS = 240


@pytest.fixture
def job(tmp_path, monkeypatch, compiled_programs):
    # Every start but the first finds its programs compiled.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", compiled_programs)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")

    def job(name):
        overrides = (
            f"--config.train.steps={STEPS}",
            "--config.train.eval_every=90",
            "--config.train.checkpoint_every=10",
            "--config.model.num_layers=1",
            "--config.model.vocab_size=64",
        )
        return Job(tmp_path / name, "configs/tiny.py:mqar", *overrides)

    return job


@pytest.mark.long
def test_killed_and_stopped_runs_lose_nothing(job):
    whole, killed, rng = job("whole"), job("killed"), random.Random(0)
    whole.finish()
    assert killed.signal_at(25, signal.SIGKILL, rng.uniform(0, 0.05)) == -signal.SIGKILL
    killed.kill_after(rng.uniform(0.5, 3))  # while it starts
    assert killed.signal_at(80, signal.SIGTERM) == 143
    assert killed.checkpoint() == killed.last_step()
    assert killed.signal_at(killed.last_step() + 20, signal.SIGINT) == 130
    assert killed.checkpoint() == killed.last_step()
    killed.signal_at(killed.last_step() + 15, signal.SIGKILL, rng.uniform(0, 0.05))
    assert killed.last_step() < STEPS
    killed.finish()
    assert differences(killed.workdir, whole.workdir, STEPS) == []
    log = (killed.workdir / "log.txt").read_text()
    assert "SIGTERM: saved step" in log and "SIGINT: saved step" in log
    assert "Traceback" not in log
