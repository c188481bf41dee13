"""Bad input at the two command lines: one line with field, found and allowed, and nothing lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import eval as eval_program
import train as train_program
from configs import tiny
from mc_jax.errors import InputError
from mc_jax.inference.weights import Weights, export_weights
from mc_jax.model import LanguageModel, ModelConfig
from mc_jax.training import train
from mc_jax.training.cli import read_config, run

ROOT = Path(__file__).parents[1]
TINY = "--config=configs/tiny.py"
MQAR = "--config=configs/tiny.py:mqar"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of two steps."""
    config = tiny.get_config("mqar")
    config.model.update(num_layers=1, dim=8, mlp_dim=8)
    config.data.length = 16
    config.train.update(steps=2, checkpoint_every=1, tensorboard=False)
    folder = tmp_path_factory.mktemp("trained")
    train(config.lock(), folder)
    return folder


@pytest.fixture
def saved(trained, tmp_path):
    """A copy of that run."""
    return shutil.copytree(trained, tmp_path / "saved")


@pytest.fixture
def refuse(monkeypatch, capsys):
    """Call a program in this process, and check that it refuses in one line."""

    def refuse(program, arguments, *parts):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [f"{program.__name__}.py", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run(program.main)
        shown = capsys.readouterr()
        assert left.value.code == 2
        (line,) = shown.err.splitlines()
        assert shown.out == "" and "Traceback" not in line
        assert line.startswith(f"{program.__name__}.py: ")
        assert ": found " in line and "; allowed: " in line
        for part in parts:
            assert part in line

    return refuse


def contents(folder):
    """All files of a folder with what they hold."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A run of two steps on text, without caching."""
    config = tiny.get_config()
    config.model.update(num_layers=1, dim=8, mlp_dim=8)
    config.model.memory.aggregation = "none"
    config.data.length = 16
    config.train.update(steps=2, tensorboard=False)
    folder = tmp_path_factory.mktemp("writer")
    train(config.lock(), folder)
    return folder


# Arguments of `eval.py generate`; field, found and allowed.
REQUESTS = {
    "empty": (["--prompt="], "prompt", "''", "at least one token"),
    "no file": (["--prompt_file=/no/file"], "--prompt_file", "/no/file", "can be read"),
    "two prompts": (["--prompt=a", "--prompt_file=b"], "arguments", "not allowed with"),
    "temperature": (["--prompt=a", "--temperature=-1"], "temperature", "-1.0", ">= 0"),
    "top_p": (["--prompt=a", "--top_p=1.5"], "top_p", "1.5", "up to 1"),
    "top_k": (["--prompt=a", "--top_k=-2"], "top_k", "-2", ">= 0"),
    "max_tokens": (["--prompt=a", "--max_tokens=0"], "max_tokens", "0", ">= 1"),
    "seed": (["--prompt=a", "--seed=99999999999999999999"], "seed", "99999", "from 0 to"),
    "number": (["--prompt=a", "--max_tokens=many"], "arguments", "many"),
    "stop": (["--prompt=a", "--stop="], "stop", "['']", "none of them empty"),
    "no session": (["--session=/no/session"], "/no/session", "no such file"),
    "no folder": (["--prompt=a", "--save_session=/no/folder/s"], "/no/folder", "that exists"),
    "step": (["--prompt=a", "--step=7"], "checkpoint", "7", "the steps [2]"),
    "decay": (["--prompt=a", "--post_training_caching=2"], "average_decay", "2.0", "up to 1"),
    "form": (["--prompt=a", "--memory_form=int4"], "--memory_form", "int4", "int8"),
    "unit": (["--prompt=a", "--memory_budget=2 cows"], "--memory_budget", "2 cows", "GiB"),
    "full": (["--prompt=a", "--when_full=drop"], "--when_full", "drop", "--memory_budget"),
    "no memories": (["--prompt=a", "--memory_form=int8"], "storage", "caches memories"),
    "budget": (
        ["--prompt=a", "--post_training_caching=1", "--memory_budget=100B"],
        "storage.budget",
        "100 bytes",
        "at least 128 bytes",
    ),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_request_to_generate(case, refuse, writer):
    arguments, *parts = REQUESTS[case]
    before = contents(writer)
    refuse(eval_program, ["generate", f"--workdir={writer}", *arguments], *parts)
    assert contents(writer) == before


def test_a_session_that_is_cut_short(refuse, writer, tmp_path):
    path = tmp_path / "short.session"
    path.write_bytes(b"half of it")
    refuse(
        eval_program,
        ["generate", f"--workdir={writer}", f"--session={path}"],
        "short.session",
        "a whole safetensors file",
    )


def test_a_recall_model_writes_no_text(refuse, trained):
    refuse(eval_program, ["generate", f"--workdir={trained}", "--prompt=a"], "workdir", "on text")


def test_a_recall_model_has_no_tasks_of_text(refuse, trained):
    arguments = ["harness", f"--workdir={trained}", "--tasks=piqa"]
    refuse(eval_program, arguments, "workdir", "on text")
    refuse(eval_program, [*arguments, "--step=7"], "checkpoint", "7", "the steps [1, 2]")


# Arguments of `eval.py needles`; field, found and allowed.
NEEDLES = {
    "task": (["--tasks", "1", "4"], "--tasks", "4", "1, 2 and 3"),
    "depth": (["--depths", "0", "101"], "--depths", "101", "from 0 to 100"),
    "negative depth": (["--depths=-1"], "--depths", "-1", "from 0 to 100"),
    "no number": (["--depths", "nan"], "--depths", "nan", "from 0 to 100"),
    "samples": (["--samples=0"], "--samples", "0", ">= 1"),
    "new tokens": (["--new_tokens=0"], "--new_tokens", "0", ">= 1"),
    "batch": (["--batch_size=0"], "--batch_size", "0", ">= 1"),
    "seed": (["--seed=-1"], "--seed", "-1", ">= 0"),
    "digits": (["--digits=19"], "--digits", "19", "from 1 to 18"),
    "digits of a UUID": (["--digits=3", "--tasks=3"], "--digits", "3", "--tasks 1 or 2"),
    "length": (["--lengths", "480", "512"], "--lengths", "480", "at least 523", "S-NIAH-1"),
    "length of a UUID": (
        ["--lengths=530", "--tasks", "1", "3"],
        "--lengths",
        "530",
        "at least 542",
    ),
    "no essays": (["--essays=/no/essay.txt"], "--essays", "/no/essay.txt", "matches a file"),
    "essays for noise": (["--essays=LICENSE", "--tasks=1"], "--essays", "LICENSE", "2 or 3"),
    "a picture": (["--essays=docs/images/gates.png"], "gates.png, byte", "UTF-8"),
    "placement": (["--placement=word"], "arguments", "word", "--help"),
    "name": (["--name=a/b"], "--name", "a/b", "without others in it"),
    "step": (["--step=7"], "checkpoint", "7", "the steps [2]"),
    "decay": (["--post_training_caching=2"], "average_decay", "2.0", "up to 1"),
}


@pytest.mark.parametrize("case", NEEDLES)
def test_a_request_for_needles(case, refuse, writer):
    arguments, *parts = NEEDLES[case]
    before = contents(writer)
    refuse(eval_program, ["needles", f"--workdir={writer}", *arguments], *parts)
    assert contents(writer) == before


def test_empty_essays(refuse, writer, tmp_path):
    (tmp_path / "essay.txt").write_text(" \n")
    arguments = ["needles", f"--workdir={writer}", f"--essays={tmp_path}"]
    refuse(eval_program, arguments, "--essays", "with 0 characters", "text with sentences")


def test_needles_for_a_model_that_reads_no_text(refuse, trained):
    refuse(eval_program, ["needles", f"--workdir={trained}"], "workdir", "on text or needles")


def test_needles_with_caching_after_training_with_caching(refuse, tmp_path):
    """The exported model of a text that caches."""
    config = tiny.get_config()
    config.model.update(num_layers=1, dim=8, mlp_dim=8)
    model = LanguageModel(ModelConfig.from_dict(config.model.to_dict()))
    params = model.init(jax.random.key(0), jax.numpy.zeros((1, 2), int))["params"]
    export_weights(tmp_path, Weights(config.to_dict(), params, 1))
    arguments = ["needles", f"--workdir={tmp_path}", "--tasks=1", "--post_training_caching=0.5"]
    refuse(eval_program, arguments, "model.memory.aggregation", "'grm'", "'none'")


def test_caching_after_training_with_caching(refuse, trained):
    refuse(
        eval_program,
        [f"--workdir={trained}", "--post_training_caching=0.5"],
        "model.memory.aggregation",
        "'grm'",
        "'none'",
    )


# The settings that are changed; field, found and allowed, as the message is to have them.
SETTINGS = {
    "key": ("model.dmi=8", "--config.model.dmi", "'dmi'", "'dim' is close"),
    "group": ("modle.dim=8", "--config.modle.dim", "'modle'", "'model' is close"),
    "depth": ("seed.x=8", "--config.seed.x", "'x'", "names here are none"),
    "integer": ("model.dim=wide", "model.dim", "wide", "values of the settings' types"),
    "fraction for an integer": ("train.steps=1.5", "train.steps", "1.5", "types"),
    "number": ("train.learning_rate=fast", "train.learning_rate", "fast", "types"),
    "truth": ("train.tensorboard=perhaps", "train.tensorboard", "perhaps", "types"),
    "segment": ("model.memory.segment_len=12", "model.memory.segment_len", "12", "chunk_len=8"),
    "chunk": ("model.memory.chunk_len=0", "model.memory.chunk_len", "0", "an integer >= 1"),
    "top_k": ("model.memory.top_k=0", "model.memory.top_k", "0", "an integer >= 1"),
    "rule": ("model.memory.rule=lstm", "model.memory.rule", "'lstm'", "swla", "titans"),
    "aggregation": ("model.memory.aggregation=sum", "memory.aggregation", "'sum'", "grm | soup"),
    "gate": ("model.memory.gate=open", "memory.gate", "'open'", "context | shared_query"),
    "segmentation": ("model.memory.segmentation=log", "segmentation", "'log'", "| logarithmic"),
    "write_mode": ("model.memory.write_mode=w", "write_mode", "'w'", "independent | checkpoint"),
    "mem_norm": ("model.memory.mem_norm=rms", "mem_norm", "'rms'", "layer", "weight_l2"),
    "activation": ("model.memory.activation=tan", "activation", "'tan'", "gelu", "relu"),
    "decay": ("model.memory.decay=maybe", "model.memory.decay", "'maybe'", "auto | on | off"),
    "window": ("model.memory.window=0", "model.memory.window", "0", "an integer >= 1"),
    "pattern": ("model.pattern=('mamba',)", "model.pattern", "mamba", "memory | attention"),
    "layers": ("model.num_layers=0", "model.num_layers", "0", "an integer >= 1"),
    "heads": ("model.num_heads=3", "model.num_heads", "3", "a divisor of model.dim=32"),
    "dtype": ("model.dtype=float16", "model.dtype", "'float16'", "float32 | bfloat16"),
    "remat": ("model.remat=some", "model.remat", "'some'", "none | full | dots"),
    "vocabulary": ("model.vocab_size=63", "model.vocab_size", "63", "at least 64"),
    "steps": ("train.steps=-1", "train.steps", "-1", "an integer >= 1"),
    "learning rate": (
        "train.learning_rate=-1",
        "train.learning_rate",
        "-1.0",
        "a finite number > 0",
    ),
    "nan": ("train.learning_rate=nan", "train.learning_rate", "nan", "a finite number > 0"),
    "infinite": ("train.learning_rate=inf", "train.learning_rate", "inf", "a finite number > 0"),
    "warm-up": ("train.warmup_fraction=2", "train.warmup_fraction", "2.0", "from 0 to 1"),
    "beta": ("train.beta2=1", "train.beta2", "1.0", "not with, 1"),
    "clip": ("train.clip_norm=-1", "train.clip_norm", "-1", "a finite number >= 0"),
    "keep": ("train.keep_checkpoints=0", "train.keep_checkpoints", "0", "an integer >= 1"),
    "batch": ("data.batch_size=-4", "data.batch_size", "-4", "at least 1"),
    "accumulation": ("train.grad_accum=3", "data.batch_size", "4", "a multiple of 3"),
    "length": ("data.length=0", "data.length", "0", "at least 1"),
    "task": ("data.task=copy", "data.task", "'copy'", "'text', 'mqar' or 'needles'"),
    "pairs type": ("data.mqar.pairs=(4.5,)", "data.mqar.pairs", "(4.5,)", "integers"),
    "pairs": ("data.mqar.pairs=(17,)", "data.mqar.pairs", "(17,)", "at most 16"),
    "no pairs": ("data.mqar.eval_pairs=()", "data.mqar.eval_pairs", "()", "one or more"),
    "keys": ("data.mqar.vocab_size=8", "data.mqar.vocab_size", "8", "at least 10"),
    "power": ("data.mqar.power_a=0", "data.mqar.power_a", "0.0", "a positive number"),
    "no held-out batch": ("data.eval_batches=0", "data.eval_batches", "0", "at least 1"),
    "workers": ("data.workers=-1", "data.workers", "-1", "at least 0"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_setting(case, refuse, trained):
    setting, *parts = SETTINGS[case]
    before = contents(trained)
    refuse(train_program, [MQAR, f"--workdir={trained}", f"--config.{setting}"], *parts)
    assert contents(trained) == before


TOGETHER = {
    "ssc without a gate": (
        {"model.memory.aggregation": "ssc", "model.memory.gate": "none"},
        ("model.memory.gate", "'none'", "ssc selects memories by score"),
    ),
    "titans that keep all": (
        {"model.memory.rule": "titans", "model.memory.decay": "off"},
        ("model.memory.decay", "'off'", "auto | on"),
    ),
    "a pattern that does not fill the blocks": (
        {"model.pattern": "('memory','attention')", "model.num_layers": 3},
        ("model.num_layers", "3", "a multiple of the 2 mixers"),
    ),
    "heads of odd width for rotary attention": (
        {"model.pattern": "('attention',)", "model.dim": 6},
        ("model.num_heads", "2", "even width"),
    ),
    "weights for other sources": (
        {"data.task": "text", "data.weights": "(1.0,2.0)", "model.vocab_size": 257},
        ("data.weights", "(1.0, 2.0)", "one weight for each of the 1 data.sources"),
    ),
    "the tokenizer's vocabulary": (
        {"data.task": "text", "model.vocab_size": 256},
        ("model.vocab_size", "256", "at least 257"),
    ),
    "no tokenizer file": (
        {"data.task": "text", "data.tokenizer": "sentencepiece:/no/x.model"},
        ("data.tokenizer", "/no/x.model", "a file that exists"),
    ),
    "an unknown tokenizer": (
        {"data.task": "text", "data.tokenizer": "words"},
        ("data.tokenizer", "'words'", "'bytes', 'sentencepiece:"),
    ),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_settings_that_do_not_go_together(case, refuse, tmp_path):
    settings, parts = TOGETHER[case]
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    refuse(train_program, [MQAR, f"--workdir={tmp_path / 'run'}", *overrides], *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config=configs/tinny.py"], ("--config", "'configs/tinny.py'", "configs/tiny.py")),
        (["--config=LICENSE"], ("--config", "'LICENSE'", "a Python file")),
        (
            ["--config=configs/tiny.py:image"],
            ("data.task", "'image'", "'text', 'mqar' or 'needles'"),
        ),
        (["--config=configs/base.py:more"], ("--config", "configs/base.py:more", "no argument")),
        (["--config=configs/finetune_gate.py"], ("--config", "finetune_gate.py:FOLDER")),
        (["--config=configs/paper_760m.py:big"], ("--config", "'big'", "RULE,AGGREGATION")),
        ([TINY, "--wrokdir=x"], ("arguments", "'--wrokdir'", "--help")),
        ([TINY, "more"], ("arguments", "'more'", "--help")),
    ],
)
def test_an_argument_of_train(arguments, parts, refuse):
    refuse(train_program, arguments, *parts)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("import nothing_of_this_name", "nothing_of_this_name"),
        ("def get_config(:", "invalid syntax"),
        ("steps = 3", "get_config()"),
        ("def get_config():\n    return {}", "ConfigDict"),
    ],
)
def test_an_experiment_file_that_is_none(source, part, refuse, tmp_path):
    (tmp_path / "mine.py").write_text(source)
    refuse(train_program, [f"--config={tmp_path / 'mine.py'}"], "--config", "mine.py", part)


@pytest.fixture
def text(refuse, tmp_path):
    """Refuse to train on a file with given content."""

    def text(name, content, source, *parts):
        (tmp_path / name).write_bytes(content)
        workdir = tmp_path / "run"
        settings = {
            "data.sources": f"('{source.format(tmp_path / name)}',)",
            "data.cache_dir": tmp_path / "cache",
            "data.eval_fraction": 0,
        }
        overrides = [f"--config.{key}={value}" for key, value in settings.items()]
        refuse(train_program, [TINY, f"--workdir={workdir}", *overrides], *parts)
        assert not (workdir / "config.json").exists() and not (workdir / "metrics.jsonl").exists()

    return text


LINES = b'{"text": "a"}\n{"text": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "source", "parts"),
    [
        ("x.txt", b"", "files:{}", ("x.txt", "0 training tokens", "at least")),
        ("x.txt", b"short", "files:{}", ("data.sources[0]", "data.length + 1 = 65 tokens")),
        ("x.txt", b"ab\xffcd", "files:{}", ("x.txt", "byte 2", "UTF-8")),
        ("x.txt", b"", "files:{}.gone", ("data.sources[0]", ".gone", "matches a file")),
        ("x.txt", b"", "text:{}", ("data.sources[0]", "text:", "stdlib, files, jsonl")),
        ("x.txt", b"", "files:{}?max_tokens=-1", ("max_tokens", "-1", "a positive integer")),
        ("x.jsonl", LINES + b'{"text": "c"\n', "jsonl:{}", ("x.jsonl:3", "JSON")),
        ("x.jsonl", LINES + b'{"body": "c"}\n', "jsonl:{}", ("x.jsonl:3", "'text'", "'body'")),
        ("x.jsonl", LINES + b'{"text": 7}\n', "jsonl:{}", ("x.jsonl:3", "7", "a string")),
        ("x.parquet", b"PAR1 but no more", "parquet:{}", ("x.parquet", "a readable Parquet")),
    ],
)
def test_a_data_file(name, content, source, parts, text):
    text(name, content, source, *parts)


def test_a_cache_that_cannot_be_written(refuse, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    overrides = ["--config.data.sources=('files:LICENSE',)"]
    overrides += [f"--config.data.cache_dir={tmp_path / 'file' / 'cache'}"]
    parts = ("data.cache_dir", "file/cache", "a folder")
    refuse(train_program, [TINY, f"--workdir={tmp_path / 'run'}", *overrides], *parts)


def test_a_workdir_that_cannot_be_written(refuse, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    parts = ("workdir", "file/run", "a folder that can be written")
    refuse(train_program, [MQAR, f"--workdir={tmp_path / 'file' / 'run'}"], *parts)
    assert (tmp_path / "file").read_text() == "not a folder"


OF_SAVED = [MQAR, "--config.model.num_layers=1", "--config.model.dim=8", "--config.model.mlp_dim=8"]
OF_SAVED += ["--config.data.length=16", "--config.train.steps=3"]


def test_a_damaged_metrics_file(saved):
    path = saved / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "garbage\n", *lines[1:]]))
    before = contents(saved)
    with pytest.raises(InputError, match="metrics.jsonl:2: found 'garbage'; allowed: a line of"):
        train(read_config(MQAR.split("=", 1)[1], OF_SAVED[1:]), saved)
    assert contents(saved) == before


def test_a_workdir_of_another_experiment(refuse, saved):
    before = contents(saved)
    parts = ("config", "'model.dim': 32", "model.dim=8", "data.length=16", "another workdir")
    refuse(train_program, [MQAR, f"--workdir={saved}"], *parts)
    assert contents(saved) == before


@pytest.mark.parametrize("part", ["state/", "config/", "data/", "metrics/"])
def test_a_damaged_checkpoint(part, refuse, saved):
    """Of each part the largest file has one bit flipped: neither program takes it."""
    newest = saved / "checkpoints" / "2"
    files = [path for path in (newest / part).rglob("*") if path.is_file()]
    target = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    before = contents(saved)
    parts = ("checkpoints/2", target.name, "has changed", "go on from step 1")
    refuse(train_program, [*OF_SAVED, f"--workdir={saved}"], *parts)
    refuse(eval_program, [f"--workdir={saved}"], *parts)
    assert contents(saved) == before


def test_a_checkpoint_with_a_file_missing(refuse, saved):
    (saved / "checkpoints" / "2" / "state" / "manifest.ocdbt").unlink()
    parts = ("checkpoints/2", "manifest.ocdbt is missing", "go on from step 1")
    refuse(eval_program, [f"--workdir={saved}"], *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ("arguments", "--workdir", "--help")),
        (["--workdir=/no/such"], ("workdir", "/no/such", "the workdir of a run")),
        (["--workdir={}", "--step=7"], ("checkpoint", "7", "the steps [1, 2]")),
        (["--workdir={}", "--step=last"], ("arguments", "--step", "'last'", "--help")),
        (["--workdir={}", "--step=2", "--best"], ("arguments", "not allowed with", "--help")),
        (["--workdir={}", "--eval_batches=-1"], ("data.eval_batches", "-1", "at least")),
        (["--workdir={}", "--length=8"], ("data.mqar.pairs", "(4,)", "at most 2")),
        (["--workdir={}", "--config.data.length=8"], ("arguments", "--config", "--help")),
    ],
)
def test_an_argument_of_eval(arguments, parts, refuse, trained):
    before = contents(trained)
    refuse(eval_program, [argument.format(trained) for argument in arguments], *parts)
    assert contents(trained) == before


def test_eval_of_a_workdir_without_a_checkpoint(refuse, tmp_path):
    refuse(eval_program, [f"--workdir={tmp_path}"], "workdir", "it has no checkpoints/")
    (tmp_path / "checkpoints").mkdir()
    refuse(eval_program, [f"--workdir={tmp_path}"], "checkpoint", "a run with a checkpoint")


def test_eval_into_a_folder_that_cannot_be_written(refuse, saved):
    (saved / "eval").write_text("not a folder")
    parts = ("workdir", "saved/eval", "a folder that can be written")
    refuse(eval_program, [f"--workdir={saved}"], *parts)


def test_the_programs_exit_with_2_and_one_line(tmp_path):
    """The same in processes of their own, side by side."""
    commands = {
        "train.py": ([TINY, f"--workdir={tmp_path}", "--config.model.num_heads=3"], "num_heads"),
        "eval.py": ([f"--workdir={tmp_path}"], "it has no checkpoints/"),
    }
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    started = {
        program: subprocess.Popen(
            [sys.executable, program, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for program, (arguments, _) in commands.items()
    }
    for program, process in started.items():
        out, error = process.communicate()
        assert (process.returncode, out) == (2, "")
        (line,) = error.splitlines()
        assert line.startswith(f"{program}: ") and commands[program][1] in line
    assert not list(tmp_path.iterdir())


def test_the_run_can_still_go_on_and_be_evaluated(saved, monkeypatch, capsys):
    """The checkpoint that all these cases left alone is a good one."""
    monkeypatch.setattr(sys, "argv", ["eval.py", f"--workdir={saved}"])
    assert eval_program.main() == 0
    assert json.loads((saved / "eval" / "step_2.json").read_text())["step"] == 2
