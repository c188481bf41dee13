"""eval.py on runs of configs/tiny.py: numbers, pictures, and what cannot be evaluated."""

import json
import sys

import matplotlib.image
import numpy as np
import pytest

import eval as program
from configs import tiny
from mc_jax.evaluation.run import no_gates
from mc_jax.training import check, train
from mc_jax.training.metrics import read


def begin(task, tmp_path):
    """A run of three steps; the held-out loss is measured after the second and the third."""
    config = tiny.get_config(task)
    config.model.num_layers = 1
    config.data.cache_dir = str(tmp_path / "cache")
    if task == "text":
        for i in range(40):
            (tmp_path / f"{i}.txt").write_text(f"{i} is the number of this text. " * 40)
        config.data.update(sources=(f"files:{tmp_path}/*.txt",), eval_fraction=0.3)
    config.train.update(steps=3, eval_every=2, checkpoint_every=2, tensorboard=False)
    train(config.lock(), tmp_path / "run")
    return tmp_path / "run"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["eval.py", *arguments])
    assert program.main() == 0


def check_picture(path, width, height):
    """The picture is large enough and not of one colour."""
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[0] >= height and pixels.shape[1] >= width
    assert len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize("task", ["text", "mqar"])
def test_a_run_is_evaluated(task, tmp_path, monkeypatch, capsys):
    workdir = begin(task, tmp_path)
    records = [r for r in read(workdir / "metrics.jsonl") if "held_out_loss" in r]
    assert [record["step"] for record in records] == [2, 3]
    capsys.readouterr()

    run(monkeypatch, f"--workdir={workdir}")
    shown = capsys.readouterr().out
    results = json.loads((workdir / "eval" / "step_3.json").read_text())
    held_out, last = results["held_out"], records[-1]
    assert (results["step"], results["task"], results["length"]) == (3, task, 64)
    assert held_out["loss"] == pytest.approx(last["held_out_loss"], rel=1e-5)
    check_picture(workdir / "eval" / "gates.png", 400, 400)
    (layer,) = results["gates"]["layers"]
    assert layer["block"] == 0 and all(0 < weight < 1 for weight in layer["online"])
    if task == "text":
        assert held_out["bits_per_byte"] == pytest.approx(last["held_out_bits_per_byte"], 1e-5)
        check_picture(workdir / "eval" / "loss_by_position.png", 600, 300)
        assert f"{held_out['bits_per_byte']:.4f}" in shown and "position 32-63" in shown
    else:
        assert held_out["accuracy"] == pytest.approx(last["held_out_accuracy"], 1e-5)
        check_picture(workdir / "eval" / "recall.png", 600, 300)
        assert "4 pairs" in shown and "distance 8-15" in shown
        assert sum(row["tokens"] for row in held_out["by_pairs"]) == 2 * 4 * (2 + 4)

    best = min(records, key=lambda record: record["held_out_loss"])["step"]
    which, step = ("--step=2", 2) if task == "text" else ("--best", best)
    run(monkeypatch, f"--workdir={workdir}", which, "--length=16", "--eval_batches=1")
    results = json.loads((workdir / "eval" / f"step_{step}.json").read_text())
    assert (results["step"], results["length"]) == (step, 16)
    assert results["held_out"]["tokens"] == (4 * 16 if task == "text" else 4 * (2 + 4))
    assert "16 tokens do not fill a segment of 16" in capsys.readouterr().out
    assert not (workdir / "eval" / "gates.png").exists()  # that of the other step would mislead


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"memory.segment_len": 64}, "64 tokens do not fill a segment of 64"),
        ({"memory.aggregation": "residual"}, "aggregation='residual' weighs no memories"),
        ({"memory.aggregation": "none"}, "aggregation='none' weighs no memories"),
        ({"memory.gate": "none"}, "gate='none' weighs no memories"),
        ({"pattern": ("attention",)}, "the model has no memory layer"),
    ],
)
def test_why_there_are_no_gates(changes, why):
    config = tiny.get_config("mqar")
    config.model.update_from_flattened_dict(changes)
    found = no_gates(check(config))
    assert found is None if why is None else found.startswith(why)
