"""What `eval.py report` refuses, in one line and before anything is written."""

import json
import sys

import pytest

import eval as program
from mc_jax.errors import InputError
from tests.evaluation.report.made import text, workdir


def refuse(monkeypatch, arguments, *parts):
    monkeypatch.setattr(sys, "argv", ["eval.py", "report", *map(str, arguments)])
    with pytest.raises(InputError) as refused:
        program.main()
    line = str(refused.value)
    assert "\n" not in line
    for part in parts:
        assert part in line


def test_folders_that_cannot_be_reported_on(monkeypatch, tmp_path):
    to = tmp_path / "report"
    gone = tmp_path / "gone"
    refuse(monkeypatch, ["--workdir", gone, f"--to={to}"], "workdir", str(gone), "that exists")
    empty = workdir(tmp_path / "empty")
    parts = ("workdir", str(empty), "python eval.py --workdir=")
    refuse(monkeypatch, ["--workdir", empty, f"--to={to}"], *parts)
    refuse(monkeypatch, [f"--to={to}"], "arguments", "--workdir")
    assert not to.exists()


def test_a_place_that_cannot_be_written(monkeypatch, tmp_path):
    folder = workdir(tmp_path / "a")
    text(folder, 2.5)
    (tmp_path / "file").write_text("not a folder")
    for to in (tmp_path / "file", tmp_path / "file" / "report"):
        refuse(monkeypatch, ["--workdir", folder, f"--to={to}"], "--to", str(to), "be written")
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize(
    "content",
    ["{", "[]", json.dumps({"rows": []}), json.dumps({"rows": [{"part": "step"}]})],
)
def test_no_results_of_throughput(content, monkeypatch, tmp_path):
    folder = workdir(tmp_path / "a")
    text(folder, 2.5)
    path = tmp_path / "x.json"
    path.write_text(content)
    arguments = ["--workdir", folder, f"--to={tmp_path / 'report'}", f"--throughput={path}"]
    refuse(monkeypatch, arguments, "--throughput", str(path), "benchmarks.throughput")
    assert not (tmp_path / "report").exists()
