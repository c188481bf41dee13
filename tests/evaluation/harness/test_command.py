"""The command: what it takes up after a kill, what it refuses, and where it finds data."""

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import datasets
import lm_eval.tasks
import pytest
from huggingface_hub import constants

import eval as program
from mc_jax.evaluation.harness import MCJaxLM, hub, selection
from mc_jax.evaluation.harness.scoring import Scorer
from mc_jax.training.cli import run
from tests.evaluation.harness import rows

ROOT = Path(__file__).parents[3]


def results(workdir):
    return {
        path.name: json.loads(path.read_text())
        for path in sorted((workdir / "eval" / "harness").glob("*.json"))
    }


def test_a_task_is_done_once(harness, workdir, data_dir, monkeypatch, capsys):
    common = [f"--workdir={workdir}", f"--data_dir={data_dir}", "--max_length=256"]
    scored = []
    score = Scorer._score
    monkeypatch.setattr(
        Scorer, "_score", lambda self, items: scored.append(len(items)) or score(self, items)
    )
    harness(*common, "--tasks=piqa")
    assert scored == [4]
    first = results(workdir)
    capsys.readouterr()
    harness(*common, "--tasks=piqa,boolq")
    assert scored == [4, 4]  # those of boolq
    shown = capsys.readouterr().out
    assert "done already, with this checkpoint and these settings: piqa" in shown
    assert shown.count("acc_norm") == 1 and "boolq" in shown
    # Other settings are another result, and none is lost.
    harness(*common, "--tasks=piqa", "--limit=1", "--num_fewshot=1", "--log_samples")
    assert scored == [4, 4, 2]
    found = results(workdir)
    assert len(found) == 3 and first.items() <= found.items()
    (short,) = (r for r in found.values() if r["settings"]["limit"])
    assert (short["documents"], short["num_fewshot"]) == (1, 1)
    (sample,) = short["samples"]
    shot, question = sample["arguments"][0][0].split("\n\n")
    assert shot in [f"Question: open a {x}\nAnswer: turn" for x in ("jar", "can")]
    assert question == "Question: dry a wet phone\nAnswer:"
    assert "samples" not in next(iter(first.values()))
    harness(*common, "--tasks=piqa", "--again")
    assert scored == [4, 4, 2, 4]
    # Another checkpoint of the same step is another model.
    os.utime(workdir / "model.safetensors", ns=(1, 1))
    harness(*common, "--tasks=piqa")
    assert scored == [4, 4, 2, 4, 4]


KILLED = """
import os, signal, sys
sys.argv = ["eval.py", "harness", *sys.argv[1:]]
import eval as program
from mc_jax.evaluation.harness import run
from mc_jax.evaluation.harness.scoring import Scorer
answers, score, calls = [], Scorer._score, []
class Caching(run.CachingLM):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        answers.append(self.dbdict)
def killed(self, items):
    calls.append(1)
    if len(calls) == 3:
        answers[0].commit()  # a thread writes them; wait for it
        os.kill(os.getpid(), signal.SIGKILL)
    return score(self, items)
run.CachingLM, Scorer._score = Caching, killed
program.main()
"""


def test_a_kill_costs_the_batch_at_work(harness, workdir, data_dir, monkeypatch):
    common = [f"--workdir={workdir}", f"--data_dir={data_dir}", "--max_length=256"]
    common += ["--tasks=hellaswag", "--batch_size=2"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *common], cwd=ROOT, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert results(workdir) == {}
    scored = []
    score = Scorer._score
    monkeypatch.setattr(
        Scorer, "_score", lambda self, items: scored.append(len(items)) or score(self, items)
    )
    harness(*common)
    assert scored == [2, 2]  # of four batches two were done
    (resumed,) = results(workdir).values()
    harness(*common, "--again")
    assert scored == [2, 2, 2, 2, 2, 2]
    (whole,) = results(workdir).values()
    assert whole["metrics"] == resumed["metrics"]
    assert not list((workdir / "eval" / "harness").glob("*.partial*"))


def test_tasks_of_ones_own(harness, workdir, tmp_path):
    """A task file, a folder of data beside it, a tag, and what the table shows of them."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "docs.jsonl").write_text('{"q": "1+1=", "a": "2"}\n{"q": "2+2=", "a": "4"}\n')
    (tmp_path / "tasks" / "sums.yaml").write_text(
        "task: sums\ntag: arithmetic\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/docs.jsonl}}}}\n"
        "test_split: test\noutput_type: loglikelihood\n"
        'doc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\nmetric_list: [{metric: acc}]\n'
    )
    harness(f"--workdir={workdir}", "--tasks=arithmetic", f"--include_path={tmp_path / 'tasks'}")
    (found,) = results(workdir).values()
    assert (found["task"], found["documents"], found["paper"]) == ("sums", 2, [])


@pytest.fixture
def refuse(monkeypatch, capsys):
    """Call the command, and check that it refuses in one line before it reads weights."""

    def refuse(*arguments):
        monkeypatch.setattr(sys, "argv", ["eval.py", "harness", *map(str, arguments)])
        monkeypatch.setattr(MCJaxLM, "of", None)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run(program.main)
        shown = capsys.readouterr()
        assert left.value.code == 2 and shown.out == ""
        (line,) = shown.err.splitlines()
        assert line.startswith("eval.py: ") and ": found " in line and "; allowed: " in line
        return line

    return refuse


# Options beside the workdir and the data; and parts of the line.
REFUSED = {
    "no task": (["--tasks=,"], "--tasks", "table1 | table3 | table4"),
    "context": (["--tasks=table3"], "--context", "16384", "at most --max_length=64"),
    "no number": (["--tasks=swde", "--context=1k"], "--context", "'1k'", "such as 512"),
    "cannot be cut": (["--tasks=piqa", "--context=64"], "--context", "this with one of swde"),
    "shots": (["--tasks=table3", "--num_fewshot=2"], "--num_fewshot", "found 2", "0 where"),
    "fewer shots": (["--tasks=piqa", "--num_fewshot=-1"], "--num_fewshot", "found -1", ">= 0"),
    "limit": (["--tasks=piqa", "--limit=1.5"], "--limit", "1.5", "a share below 1"),
    "batch": (["--tasks=piqa", "--batch_size=0"], "--batch_size", "'0'", "1 or more"),
    "length": (["--tasks=piqa", "--max_length=1"], "--max_length", "found 1", ">= 2"),
    "policy": (["--tasks=piqa", "--too_long=right"], "arguments", "right"),
    "question": (["--tasks=based_drop", "--context=60"], "--context", "found 60", "at least"),
    "decay": (["--tasks=piqa", "--post_training_caching=1"], "model.memory.aggregation", "'grm'"),
    "tokenizer": (["--tasks=piqa", "--tokenizer=hf:/no"], "--tokenizer", "hf:/no", "that exists"),
    "too long": (["--tasks=boolq,hellaswag"], "64 for hellaswag", "at least 8", "--too_long=left"),
    "no folder": (["--tasks=piqa", "--include_path=/no"], "--include_path", "/no", "that exists"),
    "step": (["--tasks=piqa", "--step=1", "--best"], "arguments", "not allowed with"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_option(case, refuse, exported, data_dir):
    options, *parts = REFUSED[case]
    line = refuse(f"--workdir={exported}", f"--data_dir={data_dir}", *options)
    for part in parts:
        assert part in line


def test_an_unknown_task(refuse, exported, monkeypatch):
    """All names of lm-eval are looked through: here a few stand for them, which is quicker."""
    whole = selection.TaskManager
    few = [Path(lm_eval.tasks.__file__).parent / name for name in ("piqa", "hellaswag")]

    def manager(include_path, include_defaults=True):
        paths = include_path + few * include_defaults
        return whole(include_path=paths, include_defaults=False)

    monkeypatch.setattr(selection, "TaskManager", manager)
    line = refuse(f"--workdir={exported}", "--tasks=piqa,helaswag")
    assert "'helaswag'; allowed: close: hellaswag" in line


def test_no_checkpoint_and_no_weights_of_that_model(refuse, workdir, tmp_path):
    line = refuse(f"--workdir={tmp_path}", "--tasks=piqa")
    assert "the workdir of a run; it has no checkpoints/" in line
    (workdir / "config.json").write_text("{")
    assert "the config.json of an export" in refuse(f"--workdir={workdir}", "--tasks=piqa")


def change_config(workdir, group, **changes):
    about = json.loads((workdir / "config.json").read_text())
    about["experiment"][group].update(changes)
    (workdir / "config.json").write_text(json.dumps(about))


def test_a_tokenizer_that_is_not_the_models(refuse, workdir):
    change_config(workdir, "model", vocab_size=200)
    line = refuse(f"--workdir={workdir}", "--tasks=piqa")
    assert "data.tokenizer: found 'bytes of 257 ids'" in line and "whose model has 200" in line
    change_config(workdir, "data", tokenizer="sentencepiece:/gone/x.model")
    line = refuse(f"--workdir={workdir}", "--tasks=piqa")
    assert "/gone/x.model" in line and "--tokenizer=KIND:PATH says where it is" in line


def test_a_model_that_was_not_trained_on_text(refuse, workdir):
    change_config(workdir, "data", task="mqar")
    assert "a model that was trained on text" in refuse(f"--workdir={workdir}", "--tasks=piqa")


@pytest.fixture
def offline(monkeypatch):
    """The hub is out of reach."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


def test_data_that_are_nowhere(refuse, offline, exported, tmp_path):
    """All of them in one line, with what to do."""
    data = rows.write(tmp_path / "data", "baber/piqa")
    line = refuse(f"--workdir={exported}", "--tasks=piqa,boolq,wikitext", f"--data_dir={data}")
    assert "aps/super_glue (boolq), EleutherAI/wikitext_document_level (wikitext-2" in line
    assert "a folder that holds aps__super_glue EleutherAI__wikitext_document_level" in line
    assert "or a network" in line and "baber" not in line
    assert "found 'none, no network" in refuse(f"--workdir={exported}", "--tasks=piqa")
    line = refuse(f"--workdir={exported}", "--tasks=piqa", "--data_dir=/no/folder")
    assert "/no/folder" in line and "a folder that exists" in line


def test_files_that_are_damaged(refuse, exported, tmp_path):
    data = rows.write(tmp_path / "data", "baber/piqa", "aps/super_glue")
    path = data / "baber__piqa" / "validation.jsonl"
    path.write_text(path.read_text()[:-20])
    line = refuse(f"--workdir={exported}", "--tasks=boolq,piqa", f"--data_dir={data}")
    assert "baber__piqa" in line and "data that the task piqa can read (" in line
    path.write_text('{"goal": "g", "sol1": "a"}\n')
    line = refuse(f"--workdir={exported}", "--tasks=piqa", f"--data_dir={data}")
    assert "data that the task piqa can read (" in line
    path.rename(path.with_name("test.jsonl"))
    line = refuse(f"--workdir={exported}", "--tasks=piqa", f"--data_dir={data}")
    assert "no split 'validation' among ['test', 'train']" in line


def test_a_task_file_that_is_damaged(refuse, exported, tmp_path):
    (tmp_path / "mine.yaml").write_text("task: [mine\n")
    line = refuse(f"--workdir={exported}", "--tasks=mine", f"--include_path={tmp_path}")
    assert "mine.yaml" in line and "a task file of lm-eval (ParserError" in line


def test_packages_that_are_not_there(refuse, exported, data_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.longbench")]:
        monkeypatch.delitem(sys.modules, name)
    line = refuse(f"--workdir={exported}", "--tasks=longbench_trec", f"--data_dir={data_dir}")
    assert "jieba" in line and "requirements-eval.txt" in line


def test_without_lm_eval():
    """One line from the command; everything else works."""
    code = (
        "import sys; sys.modules['lm_eval'] = None; import mc_jax, eval, train;"
        "from mc_jax.training.cli import run; sys.argv = ['eval.py', 'harness', '--tasks=piqa'];"
        "run(eval.main)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert "lm_eval: found 'no module lm_eval'" in line and "requirements-eval.txt" in line


def test_the_hub_and_its_cache(monkeypatch, offline):
    """Any answer of the hub will do; without one, what it has been asked for before."""
    source = hub.Source("owner/name", None)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *which: asked.append(which))
    assert hub.find([source], None) == {source: source}
    assert asked == [source] and constants.HF_HUB_OFFLINE
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        assert hub.find([source], None) == {source: source}
        answering.join()
    assert asked == [source] and not constants.HF_HUB_OFFLINE


def test_where_data_are(tmp_path):
    """A folder for a config, or none, or what the hub has."""
    source = hub.Source("owner/name", "one")
    folder = tmp_path / "owner__name"
    assert hub.local(source, tmp_path) is None and hub.local(source, None) is None
    (folder / "two").mkdir(parents=True)
    assert hub.local(source, tmp_path) is None  # another config's
    (folder / "test.jsonl").write_text("")
    assert hub.local(source, tmp_path) == (str(folder), None)
    (folder / "README.md").write_text("")
    assert hub.local(source, tmp_path) == (str(folder), "one")
    (folder / "one").mkdir()
    assert hub.local(source, tmp_path) == (str(folder / "one"), None)
    assert hub.local(hub.Source("owner/name", None), tmp_path) == (str(folder), None)
