"""Two processes of two devices each that train one model."""

import random
import signal

import numpy as np
import pytest

from benchmarks.kill_hosts import MESH, PATIENCE, Cluster, worst_difference
from mc_jax.errors import InputError
from mc_jax.training import hosts

STEPS = 24


@pytest.fixture
def cluster(tmp_path, monkeypatch, compiled_programs):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", compiled_programs)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

    def cluster(name, *overrides):
        return Cluster(
            tmp_path / name,
            "configs/tiny.py:mqar",
            f"--config.train.steps={STEPS}",
            "--config.train.eval_every=12",
            "--config.train.checkpoint_every=4",
            "--config.train.tensorboard=False",
            "--config.model.num_layers=1",
            *MESH,
            *overrides,
        )

    return cluster


@pytest.mark.long
def test_a_host_is_killed_and_one_is_stopped(cluster):
    whole, run = cluster("whole"), cluster("killed")
    whole.finish_on(1)
    code, seconds, said = run.kill_one(6, 1, random.Random(0))
    assert seconds < PATIENCE
    if code == -signal.SIGABRT:  # JAX's own service has noticed first, and ends the process
        assert "JAX distributed service detected fatal errors" in run.log(0).read_text()
    else:
        assert code == hosts.HOST_LOST
        assert "another host was lost" in said and "goes on from the last checkpoint" in said
    assert run.terminate_one(run.last_step() + 2, host=1) == [128 + signal.SIGTERM] * 2
    stopped = run.last_step()
    assert run.checkpoint() == stopped < STEPS
    for host in (0, 1):
        assert f"SIGTERM: saved step {stopped}" in run.log(host).read_text()
    assert "finished" not in run.log(1).read_text() and "tokens a step" in run.log(0).read_text()
    run.finish_on(1)
    assert worst_difference(run.workdir, whole.workdir, STEPS) <= 1e-6


def test_hosts_that_differ_are_refused(cluster):
    run = cluster("differ")
    # Refused by itself as well, on that host alone.
    processes = run.start_hosts(2, differ="--config.model.num_heads=3")
    assert [process.wait(PATIENCE) for process in processes] == [2, 2]
    for host in (0, 1):
        assert "config: found 'another one on host 1'; allowed: the same on all hosts" in (
            run.log(host).read_text()
        )
    assert not (run.workdir / "checkpoints").exists()


def test_a_workdir_that_is_not_shared_is_refused(cluster):
    run = cluster("here")
    processes = run.start_hosts(2, differ=f"--workdir={run.workdir.parent / 'elsewhere'}")
    assert [process.wait(PATIENCE) for process in processes] == [2, 2]
    for host in (0, 1):
        assert (
            "workdir: found 'another one on host 1'; allowed: one fold" in run.log(host).read_text()
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(coordinator="a:1"), "arguments: found '--coordinator'; allowed: all of"),
        (
            dict(coordinator="a:1", processes=2, process=2),
            "--process: found 2; allowed: an integer",
        ),
        (
            dict(coordinator="first", processes=2, process=1),
            "--coordinator: found 'first'; allowed: HOST:PORT",
        ),
        (
            dict(distributed=True, coordinator="a:1", processes=2, process=1),
            "arguments: found '--distributed and --coordinator.*; allowed: one way",
        ),
        (dict(distributed=True), "hosts: found '--distributed'; allowed: hosts that reach each"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        hosts.join(**options)


def test_a_host_that_fails_alone_is_not_held_up(monkeypatch):
    ended = []
    monkeypatch.setattr(hosts, "end_soon", lambda message, code: ended.append((message, code)))
    error = InputError("data.path", "a", "b")
    for joined in (False, True):
        monkeypatch.setattr(hosts.jax.distributed, "is_initialized", lambda joined=joined: joined)
        for raised in (error, OSError("disk full")):
            with pytest.raises(type(raised)), hosts.not_held_up():
                raise raised
        with hosts.not_held_up():
            pass
    assert [code for _, code in ended] == [2, 1]
    assert "data.path: found 'a'" in ended[0][0] and "disk full" in ended[1][0]


def test_code_that_differs_is_refused(monkeypatch):
    digests = np.zeros((2, 3, 32), np.uint8)  # of the config, of the code
    digests[1, 2, 5] = 1
    answers = iter(digests)
    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", lambda x: next(answers))
    with pytest.raises(InputError, match="the code of mc_jax: found 'another one on host 2'"):
        hosts.check_same({})
