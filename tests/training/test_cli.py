"""The command line: an experiment file, changed settings, errors of one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from mc_jax.errors import InputError
from mc_jax.training.cli import read_config

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "configs" / "tiny.py")


def test_settings_have_the_type_of_their_default():
    overrides = ["--config.model.dim=8", "--config.model.pattern=('memory','attention')"]
    overrides += ["--config.train.learning_rate=1", "--config.train.tensorboard=false"]
    config = read_config(f"{TINY}:mqar", overrides)
    assert config.data.task == "mqar"
    assert (config.model.dim, config.model.pattern) == (8, ("memory", "attention"))
    assert config.train.learning_rate == 1.0 and config.train.tensorboard is False


@pytest.mark.parametrize(
    ("path", "override", "message"),
    [
        (TINY, "--config.model.dmi=3", "--config.model.dmi: found 'dmi'; allowed: 'dim' is close"),
        (TINY, "--config.modle.dim=3", "--config.modle.dim: found 'modle'; allowed: 'model' is"),
        (TINY, "--config.seed.a=3", "--config.seed.a: found 'a'"),
        (TINY, "--config.model.dim=3.5", "'3.5'"),
        (TINY, "--config.train.tensorboard=perhaps", "perhaps"),
        (TINY, "--wrokdir=x", "found '--wrokdir'"),
        (TINY, "more", "found 'more'"),
        ("configs/tinny.py", "--config.seed=1", "--config: found 'configs/tinny.py'"),
        ("broken", "--config.seed=1", r"can be run \(.*line 1\)"),
        ("empty", "--config.seed=1", "a Python file that defines get_config"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(tmp_path, path, override, message):
    (tmp_path / "broken").with_suffix(".py").write_text("def get_config(:")
    (tmp_path / "empty").with_suffix(".py").write_text("")
    if "/" not in path:
        path = str(tmp_path / f"{path}.py")
    with pytest.raises(InputError, match=message) as error:
        read_config(path, [override])
    assert "\n" not in str(error.value)


def test_help_and_bad_input_of_the_program():
    def run(*arguments):
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    shown = run("--help")
    assert shown.returncode == 0
    for part in ("python train.py", "--config=", "--config.train.steps=", "The same command again"):
        assert part in shown.stdout
    bad = run(f"--config={TINY}", "--config.train.stps=3")
    assert bad.returncode == 2 and bad.stdout == ""
    assert bad.stderr.splitlines() == [bad.stderr.strip()]
    assert "'steps' is close" in bad.stderr
