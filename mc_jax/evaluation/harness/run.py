"""Tasks evaluated one after the other, each with a result file of its own."""

import dataclasses
import hashlib
import json
import math
import random
import sqlite3
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.api.model import CachingLM
from lm_eval.api.task import Task
from lm_eval.utils import handle_non_serializable
from tqdm import tqdm

from mc_jax.errors import InputError
from mc_jax.evaluation import results
from mc_jax.evaluation.generation import open_model
from mc_jax.evaluation.harness import selection
from mc_jax.evaluation.harness.adapter import MCJaxLM
from mc_jax.evaluation.harness.lengths import Limit
from mc_jax.evaluation.harness.selection import Choice
from mc_jax.evaluation.harness.subject import Subject
from mc_jax.evaluation.harness.tables import COLUMNS, column_name

Result = dict[str, Any]

# Resamplings from which the standard error of a number that is no mean is told.
BOOTSTRAP = 1000


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a task's numbers, beside the checkpoint.

    Attributes:
      max_length: longest context in tokens.
      too_long: what happens to a request that is longer.
      limit: the first documents: so many, or below 1 this share of them; None for all.
      num_fewshot: examples before each question; None for what the task says.
      post_training_caching: the decay, or None for the model as it is.
      log_samples: whether each document's requests and answers are kept.
    """

    max_length: int
    too_long: str
    limit: float | None = None
    num_fewshot: int | None = None
    post_training_caching: float | None = None
    log_samples: bool = False


class Files:
    """The result files of one checkpoint and its settings."""

    def __init__(self, workdir: Path, subject: Subject, settings: Settings) -> None:
        """Name them after the checkpoint, so that no result takes another's place."""
        self.folder = workdir / "eval" / "harness"
        self.about = {
            "step": subject.step,
            "tokenizer": subject.tokenizer.fingerprint,
            "checkpoint": _identity(workdir, subject.step),
            "lm_eval": metadata.version("lm_eval"),
            "settings": dataclasses.asdict(settings),
        }
        digest = hashlib.blake2b(json.dumps(self.about).encode(), digest_size=4).hexdigest()
        self._ending = f"step_{subject.step}-{digest}"

    def path(self, choice: Choice) -> Path:
        """Of the result of a task."""
        return self.folder / f"{choice}-{self._ending}.json"

    def partial(self, choice: Choice) -> Path:
        """Where answers are kept until the task is done."""
        return self.folder / f"{choice}-{self._ending}.partial"

    def finished(self, choice: Choice) -> Result | None:
        """The result of a task that is done, or None."""
        try:
            return json.loads(self.path(choice).read_bytes())
        except (OSError, ValueError):
            return None


def _identity(workdir: Path, step: int) -> str:
    """What changes when the weights do, without reading them."""
    sums = workdir / "checkpoints" / str(step) / "checksums.json"
    if sums.is_file():
        return hashlib.blake2b(sums.read_bytes(), digest_size=8).hexdigest()
    weights = workdir / "model.safetensors"
    if weights.is_file():
        about = weights.stat()
        return f"{about.st_size}-{about.st_mtime_ns}"
    return "unknown"


def evaluate(
    workdir: Path,
    subject: Subject,
    settings: Settings,
    choices: Sequence[Choice],
    tasks: dict[str, Task],
    batch_size: int,
) -> list[Result]:
    """Evaluate a checkpoint on tasks.

    Args:
      workdir: of the run or export; its eval/harness receives a file for each task.
      subject: the checkpoint, from `describe`.
      settings: of the evaluation.
      choices: the tasks, none of which is done.
      tasks: from `selection.load`.
      batch_size: requests that are worked on together.

    Returns:
      The results, in order.

    Raises:
      InputError: requests that are too long, before weights are read.
    """
    files = Files(workdir, subject, settings)
    limit = Limit(settings.max_length, settings.too_long)
    _seed()
    ready = []
    # Nothing is shown of what takes a moment.
    for choice in tqdm(choices, desc="building requests", unit="task", delay=2):
        task = selection.with_requests(
            tasks[choice.task], choice, subject.tokenizer, settings.limit
        )
        try:
            limit.check_requests(task.instances, subject.tokenizer)
        except InputError as error:
            raise InputError(error.field, f"{error.found} for {choice}", error.allowed) from None
        ready.append(task)
    results.make_folder(files.folder)
    lm = MCJaxLM.of(subject, open_model(workdir, subject.step).params, limit, batch_size)
    return [
        _evaluate_one(lm, files, choice, task, settings.log_samples)
        for choice, task in zip(choices, ready, strict=True)
    ]


def _seed() -> None:
    """Of what tasks may draw, as lm-eval does."""
    random.seed(0)
    np.random.seed(1234)


def _evaluate_one(
    lm: MCJaxLM, files: Files, choice: Choice, task: Task, log_samples: bool
) -> Result:
    """Evaluate one task and write its result."""
    print(f"{choice}: {len(task.instances):,} requests", flush=True)
    # The requests are there.
    setattr(task, "build_all_requests", lambda **_: None)  # noqa: B010 (a method, to mypy)
    count = len({instance.doc_id for instance in task.instances})
    partial = files.partial(choice)
    _drop_damaged(partial)
    cached = CachingLM(lm, str(partial))
    try:
        found = lm_eval.evaluate(
            cached,
            {"tasks": {choice.task: task}},
            limit=count,
            bootstrap_iters=BOOTSTRAP,
            log_samples=log_samples,
        )
    finally:
        cached.dbdict.close()
    measured = _metrics(found["results"][choice.task])
    result: Result = {
        "task": choice.task,
        "context": choice.context,
        **files.about,
        "num_fewshot": found["n-shot"].get(choice.task, 0),
        "documents": count,
        "task_version": found["versions"].get(choice.task),
        "metrics": measured,
        "paper": paper_columns(choice, measured),
    }
    if log_samples:
        samples = json.dumps(found["samples"][choice.task], default=handle_non_serializable)
        result["samples"] = _without_nan(json.loads(samples))
    written = results.write(files.path(choice), "harness", result)
    partial.unlink(missing_ok=True)
    return written


def _drop_damaged(path: Path) -> None:
    """Remove answers that a machine that went down has left half written."""
    if not path.is_file():
        return
    database = sqlite3.connect(path)
    try:
        sound = database.execute("PRAGMA quick_check").fetchone() == ("ok",)
    except sqlite3.DatabaseError:
        sound = False
    database.close()
    if not sound:
        path.unlink()


def _metrics(found: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Value and standard error of every number, by lm-eval's name.

    The name of a filter follows if a task has several; no standard error is None.
    """
    metrics = {}
    for key, value in found.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr"):
            continue
        stderr = found.get(f"{name}_stderr,{filtered}")
        label = name if filtered == "none" else key
        metrics[label] = {"value": _number(value), "stderr": _number(stderr)}
    return metrics


def _number(value: Any) -> float | None:
    """A number of JSON's, None for what is none."""
    try:
        return float(value) if math.isfinite(value) else None
    except TypeError:
        return None


def _without_nan(value: Any) -> Any:
    """JSON with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _without_nan(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_without_nan(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def paper_columns(choice: Choice, metrics: dict[str, dict[str, float | None]]) -> list[Result]:
    """What goes into the paper's tables: `table`, `column` and `value`, in the paper's unit."""
    columns = []
    for column in COLUMNS.get(choice.task, ()):
        value = metrics[column.metric]["value"]
        columns.append(
            {
                "table": column.table,
                "column": column_name(column, choice.context),
                "metric": column.metric,
                "value": value if value is None or not column.percent else 100 * value,
            }
        )
    return columns
