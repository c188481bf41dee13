"""`eval.py generate` and `eval.py export`: prompts from anywhere, sessions, exported models."""

import io
import sys

import jax
import numpy as np
import pytest

import eval as eval_program
from configs import tiny
from mc_jax import InputError, data
from mc_jax.inference import Sampling, generate, prefill
from mc_jax.inference.session import Session, save_session
from mc_jax.model import ModelConfig
from mc_jax.training import load, train

PROMPT = "Grüße\r\n\tx = 1"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two steps on text."""
    config = tiny.get_config()
    config.model.update(num_layers=1, dim=8, mlp_dim=8)
    config.data.length = 16
    config.train.update(steps=2, tensorboard=False)
    folder = tmp_path_factory.mktemp("run")
    train(config.lock(), folder)
    return folder


@pytest.fixture
def call(monkeypatch, capsys, workdir):
    """Call `eval.py generate`, for the likeliest tokens; returns what it prints."""

    def call(*arguments, folder=workdir, stdin=b""):
        fixed = [f"--workdir={folder}", "--max_tokens=8", "--temperature=0"]
        monkeypatch.setattr(sys, "argv", ["eval.py", "generate", *fixed, *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        assert eval_program.main() == 0
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def expected(workdir):
    """What the model writes after the prompt."""
    saved = load(workdir, "latest")
    config = ModelConfig.from_dict(saved.config.model.to_dict())
    tokenizer = data.tokenizer(saved.config.data)
    greedy = Sampling(temperature=0)
    (found,) = generate(config, saved.params, tokenizer, [PROMPT], max_tokens=8, sampling=greedy)
    return found.text + "\n"


def test_prompts_are_read_as_they_stand(call, expected, tmp_path):
    file = tmp_path / "prompt"
    file.write_bytes(PROMPT.encode())
    assert call(f"--prompt={PROMPT}") == expected
    assert call(f"--prompt_file={file}") == expected
    assert call(stdin=PROMPT.encode()) == expected
    assert call("--prompt_file=-", stdin=PROMPT.encode()) == expected


def test_a_session_goes_on(call, expected, tmp_path):
    file = tmp_path / "kept"
    call(f"--prompt={PROMPT[:5]}", f"--save_session={file}")
    assert call(f"--session={file}", f"--prompt={PROMPT[5:]}", f"--save_session={file}") == expected
    assert call(f"--session={file}") == expected


def test_an_exported_model_writes_the_same(call, expected, monkeypatch, workdir, tmp_path):
    def export(to):
        monkeypatch.setattr(sys, "argv", ["", "export", f"--workdir={workdir}", f"--to={to}"])
        return eval_program.main()

    folder = tmp_path / "model"
    assert export(folder) == 0
    assert call(f"--prompt={PROMPT}", folder=folder) == expected
    assert call(f"--prompt={PROMPT}", "--step=2", folder=folder) == expected
    for other in ("--step=1", "--best"):
        with pytest.raises(InputError, match="checkpoint"):
            call(f"--prompt={PROMPT}", other, folder=folder)
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(InputError, match="would be replaced"):
        export(workdir)
    assert (workdir / "config.json").read_bytes() == before


def test_what_is_no_text(call, tmp_path):
    file = tmp_path / "prompt"
    file.write_bytes(b"\xff")
    for arguments, field in (
        ([f"--prompt_file={file}"], "--prompt_file"),
        (["--prompt=\udcff"], "--prompt"),
        ([], "prompt"),
    ):
        with pytest.raises(InputError) as error:
            call(*arguments, stdin=b"\xff")
        assert error.value.field == field
    for where in (tmp_path, tmp_path / "no" / "file"):
        with pytest.raises(InputError, match="--save_session"):
            call("--prompt=a", f"--save_session={where}")


def test_a_session_of_two_texts(call, workdir, tmp_path):
    saved = load(workdir, "latest")
    config = ModelConfig.from_dict(saved.config.model.to_dict())
    session = Session(*prefill(config, saved.params, np.ones((2, 3), np.int32)))
    save_session(tmp_path / "two", config, jax.device_get(saved.params), session)
    with pytest.raises(InputError, match="2 texts"):
        call(f"--session={tmp_path / 'two'}")
