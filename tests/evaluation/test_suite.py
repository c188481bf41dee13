"""Every offline evaluation of several runs in one command."""

import json

import pytest

import eval as program
from mc_jax.errors import InputError
from mc_jax.evaluation import results, suite
from tests.evaluation.test_run import begin, run


@pytest.fixture
def runs(tmp_path):
    """A run of text and one of recall, three steps each."""
    folders = {}
    for task in ("text", "mqar"):
        (tmp_path / task).mkdir()
        folders[task] = begin(task, tmp_path / task)
    return folders


@pytest.fixture(scope="module")
def recall_run(tmp_path_factory):
    return begin("mqar", tmp_path_factory.mktemp("mqar"))


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_suite_goes_on_where_it_was_stopped(runs, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(suite, "_harness", asked.append)
    command = ["suite", "--workdir", *map(str, runs.values()), f"--to={tmp_path / 'report'}"]
    command += ["--lengths", "640", "--samples=1", "--tasks=mine", "--include_path=mine"]

    # Stopped while needles are looked for.
    def stopped(arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(suite, "needles_command", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(monkeypatch, *command)
    first = contents(runs["text"] / "eval")
    assert runs["text"] / "eval" / "step_3.json" in first
    assert not (runs["mqar"] / "eval").exists()

    run(monkeypatch, *command)
    shown = capsys.readouterr().out
    assert f"[1/5] {runs['text']}: held-out data\ndone already" in shown
    assert f"[4/5] {runs['mqar']}: held-out data" in shown
    expected = [f"--workdir={runs['text']}", "--tasks=mine", "--include_path=mine"]
    assert asked == [["--workdir", *expected[0].split("=")[1:], *expected[1:]]]
    everything = contents(runs["text"] / "eval") | contents(runs["mqar"] / "eval")
    assert {path: everything[path] for path in first} == first
    found = results.find(runs.values())
    needles = [result.content for result in found if result.kind == "needles"]
    assert {row["task"] for row in needles} == {"S-NIAH-1", "S-NIAH-2", "S-NIAH-3"}
    assert all((row["length"], row["samples"]) == (640, 1) for row in needles)
    report = (tmp_path / "report" / "report.md").read_text()
    held_out = json.loads(everything[runs["text"] / "eval" / "step_3.json"])["held_out"]
    assert f"{held_out['bits_per_byte']:.4f}" in report

    # Nothing is computed twice.
    def computed(*arguments, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(suite, "evaluate", computed)
    monkeypatch.setattr("mc_jax.evaluation.needles.command.generate", computed)
    run(monkeypatch, *command)
    assert contents(runs["text"] / "eval") | contents(runs["mqar"] / "eval") == everything


def test_another_length_of_held_out_text_is_another_result(runs, tmp_path, monkeypatch):
    run(monkeypatch, f"--workdir={runs['mqar']}", "--length=128")
    run(monkeypatch, "suite", f"--workdir={runs['mqar']}", f"--to={tmp_path / 'report'}")
    found = json.loads((runs["mqar"] / "eval" / "step_3.json").read_text())
    assert found["length"] == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir", "RUN", "none"], "workdir: found 'none'"),
        (["--workdir", "RUN", "--limit=3"], "--tasks: found None; allowed: tasks of the harness"),
        (["--workdir", "RUN", "--samples=few"], "arguments: found .*few"),
    ],
)
def test_refusals(arguments, message, recall_run, monkeypatch):
    folder = recall_run
    arguments = [str(folder) if x == "RUN" else x for x in arguments]
    monkeypatch.setattr("sys.argv", ["eval.py", "suite", *arguments])
    with pytest.raises(InputError, match=message):
        program.main()
    assert not (folder / "eval").exists()
