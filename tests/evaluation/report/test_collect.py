"""What is found in folders: models and their names, and damaged files."""

import json

import pytest

from mc_jax.evaluation.report import collect
from tests.evaluation.report.made import curve, result, text, workdir


def labels(*folders):
    return [model.label for model in collect(folders).models]


def test_models_below_a_folder_are_sorted(tmp_path):
    for i, (rule, how) in enumerate([("titans", "ssc"), ("dla", "grm"), ("titans", "none")]):
        text(workdir(tmp_path / f"{i}", rule, how), 2.5)
    assert labels(tmp_path) == ["DLA+GRM", "Titans", "Titans+SSC"]
    # Folders that are given keep their order, and are there once.
    given = [tmp_path / "0", tmp_path / "2", tmp_path / "0"]
    assert labels(*given) == ["Titans+SSC", "Titans"]
    assert labels(tmp_path / "2", tmp_path) == ["Titans", "DLA+GRM", "Titans+SSC"]


@pytest.mark.parametrize(
    ("pattern", "label"),
    [
        (("attention",), "Transformer++"),
        (("memory", "attention"), "Titans in memory-attention+GRM"),
        (("sliding",), "sliding"),
    ],
)
def test_names_of_other_mixers(pattern, label, tmp_path):
    folder = workdir(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["pattern"] = pattern
    (folder / "config.json").write_text(json.dumps(config))
    text(folder, 2.5)
    assert labels(folder) == [label]


def test_who_selects_is_part_of_the_name(tmp_path):
    folder = workdir(tmp_path / "a", "titans", "ssc")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["memory"]["route_every"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    text(folder, 2.5)
    (model,) = collect([folder]).models
    assert model.variant == "selects every 8"


def test_models_of_one_name_are_told_apart(tmp_path):
    for name, task in (("a", "text"), ("b", "mqar")):
        folder = workdir(tmp_path / name, task=task)
        curve(folder, [3.0, 2.0])
    assert labels(tmp_path) == ["Titans+GRM (text)", "Titans+GRM (mqar)"]
    curve(workdir(tmp_path / "c" / "b"), [3.0, 2.0])
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "c" / "b"]
    assert labels(tmp_path) == [f"Titans+GRM ({path})" for path in paths]


def test_the_parameters_are_those_of_the_model(tmp_path):
    """Of a model that runs on a TPU alone, too."""
    folder = workdir(tmp_path / "a", "linear", "none", implementation="pallas")
    text(folder, 2.5)
    (model,) = collect([folder]).models
    vocabulary, width, feed_forward = 257, 32, 64
    projections = 5 * width * width + 3 * width * feed_forward
    # And convolutions, gates and norms.
    assert 0 < model.parameters - vocabulary * width - 2 * projections < 2000


def test_an_exported_model_and_results_without_one(tmp_path):
    exported, alone = workdir(tmp_path / "a"), tmp_path / "b"
    config = json.loads((exported / "config.json").read_text())
    about = {"mc_jax": "0.1.0", "step": 20, "experiment": config}
    (exported / "config.json").write_text(json.dumps(about))
    text(exported, 2.5)
    text(alone, 2.5)
    assert labels(exported, alone) == ["Titans+GRM", str(alone)]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("eval/step_30.json", '{"kind": "eval', "not readable as JSON"),
        ("config.json", "{", "config.json: not readable"),
        ("config.json", "{}", "the config.json of a run"),
        ("config.json", "[]", "the config.json of a run"),
        ("metrics.jsonl", '{"step": 1}\n{"st', "metrics.jsonl:2"),
    ],
)
def test_a_damaged_file_is_left_out(name, content, part, report, capsys, tmp_path):
    folder = workdir(tmp_path / "a")
    text(folder, 2.5)
    curve(folder, [3.0, 2.0])
    (folder / name).write_text(content)
    page, _, _ = report(folder)
    shown = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert any(part in line for line in shown) and all(str(folder) in line for line in shown)
    assert part in page.text and "2.5000" in page.text


@pytest.mark.parametrize("kind", ["evaluation", "harness", "needles", "sweep"])
def test_a_result_that_is_not_whole_is_left_out(kind, report, capsys, tmp_path):
    folder = workdir(tmp_path / "a")
    text(folder, 2.5)
    result(folder / "eval" / "other" / "x.json", kind, step="twenty", held_out=[], axes=3)
    page, _, _ = report(folder)
    assert f"x.json: no whole {kind} result" in capsys.readouterr().err
    assert f"x.json: no whole {kind} result" in page.text and "2.5000" in page.text


def test_a_result_of_an_unknown_kind_is_named(report, tmp_path):
    folder = workdir(tmp_path / "a")
    result(folder / "eval" / "new.json", "novelty", value=1)
    page, _, _ = report(folder)
    assert page.cells("left-out") == {("", "novelty"): {"file": str(folder / "eval" / "new.json")}}
    assert "python eval.py --workdir=runs/x" in page.text
