"""What the terminal shows of results."""

from collections.abc import Sequence
from typing import Any

from mc_jax.evaluation.summary import table


def summary(results: Sequence[dict[str, Any]]) -> str:
    """A row for each number: with its standard error, and as the paper's tables have it."""
    lines = [["task", "metric", "value", "stderr", "documents", "paper's column", "in its unit"]]
    for result in results:
        columns = {column["metric"]: column for column in result["paper"]}
        name = result["task"]
        if result["context"] is not None:
            name += f" at {result['context']:,}"
        for metric, number in result["metrics"].items():
            column = columns.get(metric)
            lines.append(
                [
                    name,
                    metric,
                    _show(number["value"], ".4f"),
                    _show(number["stderr"], ".4f"),
                    f"{result['documents']:,}",
                    column["column"] if column else "",
                    _show(column["value"], ".2f") if column else "",
                ]
            )
            name = ""
    return table(lines)


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
