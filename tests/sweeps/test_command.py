"""train.py sweep on tiny runs: its numbers, stopping, going on, changes, divergence, shares."""

import json
import os
import signal
import sys

import pytest

import train as program
from mc_jax.errors import InputError
from mc_jax.evaluation import evaluate
from mc_jax.sweeps import Sweep
from mc_jax.training import loop, train
from mc_jax.training.cli import call_in_file
from tests.evaluation.test_run import check_picture

pytestmark = pytest.mark.usefixtures("compile_once")

STEPS = 4  # of a run


@pytest.fixture
def run(monkeypatch, tmp_path, file, capsys):
    """Call the program; gives its exit code and what it printed."""

    def run(*arguments):
        command = ["train.py", "sweep", f"--sweep={file}", f"--workdir={tmp_path / 'sweep'}"]
        monkeypatch.setattr(sys, "argv", [*command, *arguments])
        capsys.readouterr()
        return program.main(), capsys.readouterr().out

    return run


@pytest.fixture
def steps(monkeypatch):
    """Batches that were trained on; `steps.stop_at` sends SIGTERM with one of them."""
    to_devices = loop.to_devices

    class Steps:
        taken, stop_at = 0, None

    def counted(*arguments):
        Steps.taken += 1
        if Steps.taken == Steps.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return to_devices(*arguments)

    monkeypatch.setattr(loop, "to_devices", counted)
    return Steps


def written(tmp_path):
    return json.loads((tmp_path / "sweep" / "sweep.json").read_text())


def losses(evaluation):
    """By pairs."""
    return {row["pairs"]: row["loss"] for row in evaluation["held_out"]["by_pairs"]}


def by_hand(cell, seed, folder):
    """Losses of one run, trained and evaluated by itself."""
    cell.config.seed = seed
    train(cell.config, folder)
    return losses(evaluate(folder))


@pytest.mark.long
def test_a_stopped_sweep_goes_on_to_the_numbers_of_its_runs(run, steps, file, tmp_path):
    steps.stop_at = STEPS + 2  # in the second run
    code, shown = run()
    assert code == 128 + signal.SIGTERM and "SIGTERM: saved; the same command goes on" in shown
    assert "run 2 of 4: aggregation=grm, seed 0; about 00:" in shown
    assert steps.taken == STEPS + 2 and written(tmp_path)["finished"] == 1

    code, shown = run()
    assert code == 0 and "1 of 4 runs are finished" in shown and "4 of 4 runs" in shown
    assert steps.taken == 4 * STEPS, "no step is done twice"
    found = written(tmp_path)
    assert (found["kind"], found["better"], found["finished"]) == ("sweep", "lower", 4)
    assert found["axes"] == {"aggregation": ["none", "grm"], "pairs": [2, 4]}
    check_picture(tmp_path / "sweep" / "sweep.png", 400, 300)

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").glob("*/*")}
    assert run()[0] == 0 and run("--report")[1].count("| grm |") == 1
    assert steps.taken == 4 * STEPS
    assert files == {path: path.stat().st_mtime_ns for path in files}

    expected = {
        (how, seed): losses(
            json.loads((tmp_path / f"sweep/{how}-seed{seed}/eval/step_{STEPS}.json").read_text())
        )
        for how in ("none", "grm")
        for seed in (0, 1)
    }
    none, grm = call_in_file("--sweep", str(file), "get_sweep", Sweep).cells
    assert expected["none", 1] == by_hand(none, 1, tmp_path / "none")
    assert expected["grm", 0] == by_hand(grm, 0, tmp_path / "grm"), "the one that was stopped"
    assert len({str(found) for found in expected.values()}) == 4
    assert [place["axes"] for place in found["cells"]] == [
        {"aggregation": how, "pairs": pairs} for how in ("none", "grm") for pairs in (2, 4)
    ]
    for place in found["cells"]:
        how, pairs = place["axes"].values()
        values = [expected[how, seed][pairs] for seed in (0, 1)]
        assert place["values"] == {str(seed): loss for seed, loss in enumerate(values)}
        assert place["mean"] == pytest.approx(sum(values) / 2)
        assert (place["lowest"], place["highest"]) == (min(values), max(values))
        assert f"{place['mean']:.3f} ({min(values):.3f} to {max(values):.3f})" in shown


def test_a_changed_config_is_refused_and_a_diverged_run_is_recorded(run, steps, file, tmp_path):
    code, shown = run("--share=1/4")
    assert code == 0 and "0 of 1 runs" in shown and "--report makes table and picture" in shown
    assert steps.taken == STEPS and not (tmp_path / "sweep" / "sweep.json").exists()
    assert "1 of 4 runs" in run("--report")[1] and len(written(tmp_path)["runs"]) == 1
    text = file.read_text()
    file.write_text(text.replace('"none": 0.01', '"none": 0.02'))
    outcome = tmp_path / "sweep" / "none-seed0" / "outcome.json"
    before = outcome.read_bytes()
    with pytest.raises(InputError) as error:
        run()
    assert error.value.field == str(outcome.parent)
    assert error.value.found == {"train.learning_rate": 0.02}
    assert "train.learning_rate=0.01" in error.value.allowed
    assert outcome.read_bytes() == before and steps.taken == STEPS

    file.write_text(text.replace('"grm": 0.01', '"grm": 1e38'))
    code, shown = run("--seeds", "0")
    assert code == 0 and "diverged: " in shown and "| grm | diverged | diverged | 0, 1 div" in shown
    found = written(tmp_path)
    assert found["finished"] == 2
    for place in found["cells"]:
        diverged = place["axes"]["aggregation"] == "grm"
        assert (place["mean"] is None) == diverged and place["diverged"] == [0] * diverged
    (record,) = [run for run in found["runs"] if run["diverged"]]
    assert record["axes"] == {"aggregation": "grm"} and "at step" in record["diverged"]
    taken = steps.taken
    run("--seeds", "0")
    assert steps.taken == taken, "it diverges once"


@pytest.mark.long
def test_runs_are_evaluated_at_every_length(run, steps, file, tmp_path):
    text = file.read_text().replace('x="pairs"', 'x="length"').replace("(0, 1)", "(0,)")
    file.write_text(text.replace('by="pairs"', 'by="length", lengths=(64, 16)'))
    code, shown = run()
    assert code == 0 and "loss, 16 tokens | loss, 64 tokens" in shown
    found = written(tmp_path)
    assert found["axes"]["length"] == [16, 64]
    folder = tmp_path / "sweep" / "grm-seed0"
    for length in (16, 64):
        (place,) = [
            x for x in found["cells"] if x["axes"] == {"aggregation": "grm", "length": length}
        ]
        assert place["mean"] == evaluate(folder, length=length)["held_out"]["loss"]
    own = evaluate(folder)["held_out"]["loss"]
    assert own not in (x["mean"] for x in found["cells"])

    # One more length: evaluated again, not trained again.
    taken = steps.taken
    file.write_text(file.read_text().replace("(64, 16)", "(64, 16, 48)"))
    assert run()[0] == 0 and steps.taken == taken
    assert written(tmp_path)["axes"]["length"] == [16, 48, 64]
    kept = json.loads((folder / f"eval/step_{STEPS}.json").read_text())
    assert (kept["length"], kept["held_out"]["loss"]) == (32, own)


@pytest.mark.parametrize("name", ["config.json", "outcome.json"])
def test_a_damaged_file_is_named(run, steps, tmp_path, name):
    folder = tmp_path / "sweep" / "grm-seed1"
    folder.mkdir(parents=True)
    (folder / name).write_text('{"held')
    with pytest.raises(InputError, match=f"grm-seed1/{name}: found 'a damaged file'") as error:
        run()
    assert "delete the folder to do the run again" in str(error.value) and steps.taken == 0


def test_nothing_to_report(run, tmp_path):
    with pytest.raises(InputError, match="--report: found .*sweep'; allowed: a folder with a fin"):
        run("--report")
    assert not (tmp_path / "sweep").exists()
