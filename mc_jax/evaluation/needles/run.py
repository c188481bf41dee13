"""Evaluates one task at one length, and goes on where a run that was killed has stopped.

Two files each: s-niah-TASK_LENGTH.jsonl, a line of settings and one for each prediction, written as
they come; and s-niah-TASK_LENGTH.json, the result.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mc_jax.data.needles import Prompts
from mc_jax.errors import InputError
from mc_jax.evaluation.needles.score import recalled
from mc_jax.evaluation.results import write

Generate = Callable[[list[str]], Sequence[str]]
Record = dict[str, Any]


class Cell(NamedTuple):
    """One task at one length.

    Attributes:
      prompts: what is asked.
      length: tokens of a prompt and of the room for its answer.
      settings: what, beside the index, a prediction depends on, of JSON's types.
    """

    prompts: Prompts
    length: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """Of its files."""
        return f"s-niah-{self.prompts.task}_{self.length}"

    def done(self, folder: Path) -> list[Record]:
        """The predictions that are there, in the order of their prompts.

        Raises:
          InputError: they were made with other settings.
        """
        path = folder / f"{self.name}.jsonl"
        if not path.is_file():
            return []
        lines = [line for line in path.read_bytes().splitlines(keepends=True)]
        if lines and not lines[-1].endswith(b"\n"):  # the process was killed while it wrote
            lines.pop()
        if not lines:
            return []
        try:
            settings, *records = [json.loads(line) for line in lines]
        except ValueError:
            raise InputError(str(path), "a line that is no JSON", "the file as it was") from None
        if settings != self.settings:
            found = {k: v for k, v in self.settings.items() if settings.get(k) != v}
            there = {k: settings.get(k) for k in found}
            allowed = f"{there}, as the predictions there were made with, or another --name"
            raise InputError(str(path), found, allowed)
        return records


def evaluate_cell(
    cell: Cell,
    folder: Path,
    generate: Generate,
    batch_size: int,
    progress: Callable[[int], Any] = lambda count: None,
) -> Record:
    """Ask what has not been asked before, and write the result.

    Args:
      cell: what is asked.
      folder: of the files.
      generate: completes `batch_size` prompts.
      batch_size: prompts side by side.
      progress: is told the number of prompts after each batch.

    Returns:
      What the JSON file holds: `task`, `length`, `samples`, `accuracy` (the share of predictions
      that hold the value), `by_depth`, and the settings.

    Raises:
      InputError: there are predictions that were made with other settings.
    """
    records = cell.done(folder)
    path = folder / f"{cell.name}.jsonl"
    # Without half of a line that a killed process has left.
    whole = b"".join(_line(part) for part in (cell.settings, *records))
    with path.open("r+b" if path.is_file() else "wb") as file:
        file.write(whole)
        file.truncate()
        for start in range(len(records), len(cell.prompts), batch_size):
            stop = min(start + batch_size, len(cell.prompts))
            records += (new := _ask(cell.prompts, range(start, stop), generate, batch_size))
            file.write(b"".join(map(_line, new)))
            file.flush()
            os.fsync(file.fileno())
            progress(stop - start)
    records = records[: len(cell.prompts)]
    content = {
        "task": f"S-NIAH-{cell.prompts.task}",
        "length": cell.length,
        "samples": len(records),
        "accuracy": sum(record["recalled"] for record in records) / len(records),
        "by_depth": by_depth(records),
        **cell.settings,
    }
    return write(folder / f"{cell.name}.json", "needles", content)


def by_depth(records: Sequence[Record]) -> list[Record]:
    """`depth`, `samples` and `accuracy` of each depth, in their order."""
    rows = []
    for depth in sorted({record["depth"] for record in records}):
        found = [record["recalled"] for record in records if record["depth"] == depth]
        rows.append({"depth": depth, "samples": len(found), "accuracy": sum(found) / len(found)})
    return rows


def _ask(prompts: Prompts, indices: range, generate: Generate, batch_size: int) -> list[Record]:
    """Predictions of a batch."""
    samples = [prompts[index] for index in indices]
    texts = [sample.prompt for sample in samples]
    # A batch of another size would be another program to compile.
    predictions = generate(texts + texts[-1:] * (batch_size - len(texts)))
    records = []
    for index, sample, prediction in zip(indices, samples, predictions, strict=False):
        answer = sample.question.value
        records.append(
            {
                "index": index,
                "depth": sample.question.depth,
                "tokens": len(sample.ids),
                "needle": sample.needle,
                "key": sample.question.key,
                "answer": answer,
                "prediction": prediction,
                "recalled": recalled(answer, prediction),
            }
        )
    return records


def _line(content: Record) -> bytes:
    return json.dumps(content).encode() + b"\n"
