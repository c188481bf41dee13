"""Where numbers go: metrics.jsonl, TensorBoard, Weights & Biases."""

import importlib.util
import json
import os
import uuid
from pathlib import Path
from typing import Any, Protocol

from tensorboardX import SummaryWriter

from mc_jax.errors import InputError
from mc_jax.files import replace
from mc_jax.training.config import TrainConfig

Record = dict[str, float]


_TIMES = ("tokens_per_second", "mfu", "goodput")


def is_time(name: str) -> bool:
    """Whether a number of a step says how long something took, and so differs between runs."""
    return name in _TIMES or name.startswith("seconds_in_")


class Sink(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, record: Record) -> None:
        """Take the numbers of step `step`."""

    def sync(self) -> None:
        """Return when all that was written survives a crash of the machine."""

    def close(self) -> None:
        """Finish."""


class JsonLines:
    """One line of JSON a step, each step once however often the run was stopped."""

    def __init__(self, path: Path, start: int):
        """Go on after step `start`: later lines are of steps that will be done again."""
        if path.exists():
            replace(path, "".join(_lines_until(path, start)).encode())
        self._file = path.open("a")

    def write(self, step: int, record: Record) -> None:
        """Append the line, and hand it to the operating system."""
        self._file.write(json.dumps({"step": step, **record}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """See `Sink`."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """See `Sink`."""
        self._file.close()


def _lines_until(path: Path, last: int) -> list[str]:
    """Lines of the steps up to `last`; a last line that a crash cut short is left out."""
    lines = [line for line in _text(path).splitlines(keepends=True) if line.endswith("\n")]
    steps = [_record(path, number, line)["step"] for number, line in enumerate(lines, 1)]
    return [line for line, step in zip(lines, steps, strict=True) if step <= last]


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, each with its `step`.

    Raises:
      InputError: a line is damaged.
    """
    return [_record(path, number, line) for number, line in enumerate(_text(path).splitlines(), 1)]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), str(error), "a readable file; move it away") from None


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        int(record["step"])
    except (ValueError, KeyError, TypeError):
        allowed = "a line of JSON with its step; remove the line or move the file away"
        raise InputError(f"{path}:{number}", line.strip()[:60], allowed) from None
    return record


class TensorBoard:
    """Event files; points of steps that are done again are hidden."""

    def __init__(self, folder: Path, start: int):
        """Go on after step `start`."""
        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, step: int, record: Record) -> None:
        """See `Sink`."""
        for name, value in record.items():
            self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        """See `Sink`."""
        self._writer.flush()

    def close(self) -> None:
        """See `Sink`."""
        self._writer.close()


class WeightsAndBiases:
    """A W&B run with the name of the workdir, whose id is kept there to go on with it."""

    def __init__(self, project: str, workdir: Path, config: dict[str, Any]):
        """Begin or go on."""
        import wandb  # only where it was asked for

        id_file = workdir / "wandb_id"
        if not id_file.exists():
            replace(id_file, uuid.uuid4().hex.encode())
        self._run = wandb.init(
            project=project,
            name=workdir.name,
            id=id_file.read_text(),
            dir=workdir,
            config=config,
            resume="allow",
        )

    def write(self, step: int, record: Record) -> None:
        """See `Sink`."""
        self._run.log(record, step=step)

    def sync(self) -> None:
        """W&B sends in the background."""

    def close(self) -> None:
        """See `Sink`."""
        self._run.finish()


def check(config: TrainConfig) -> None:
    """Check that every sink that is asked for is there.

    Raises:
      InputError: W&B is asked for and not installed.
    """
    if config.wandb_project and importlib.util.find_spec("wandb") is None:
        allowed = "'' while wandb is not installed (pip install wandb)"
        raise InputError("train.wandb_project", config.wandb_project, allowed)


def open_sinks(
    config: TrainConfig, workdir: Path, experiment: dict[str, Any], start: int
) -> list[Sink]:
    """The sinks that `config` asks for, ready for step `start` + 1."""
    sinks: list[Sink] = [JsonLines(workdir / "metrics.jsonl", start)]
    if config.tensorboard:
        sinks.append(TensorBoard(workdir / "tensorboard", start))
    if config.wandb_project:
        sinks.append(WeightsAndBiases(config.wandb_project, workdir, experiment))
    return sinks
