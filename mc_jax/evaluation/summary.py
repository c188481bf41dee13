"""What the terminal shows of an evaluation."""

from collections.abc import Sequence
from typing import Any

_COLUMNS = {  # of the table of a task: the number's name, its title and its format
    "text": (
        ("tokens", "tokens", ",d"),
        ("loss", "nats/token", ".4f"),
        ("perplexity", "perplexity", ".3f"),
        ("bits_per_byte", "bits/byte", ".4f"),
    ),
    "needles": (
        ("examples", "examples", ",d"),
        ("exact", "whole answers", ".4f"),
        ("accuracy", "tokens", ".4f"),
        ("loss", "nats/token", ".4f"),
    ),
    "mqar": (
        ("tokens", "queries", ",d"),
        ("accuracy", "recall", ".4f"),
        ("loss", "nats/query", ".4f"),
    ),
}


def summary(results: dict[str, Any]) -> str:
    """The results of `evaluate` as tables for people."""
    held_out, columns = results["held_out"], _COLUMNS[results["task"]]
    rows = [("overall", held_out)]
    if results["task"] == "text":
        rows += [(f"position {_span(row)}", row) for row in held_out["by_position"]]
    elif results["task"] == "needles":
        rows += [
            (f"S-NIAH-{row['task']}, depth {row['from']}-{row['to']}%", row)
            for row in held_out["by_quarter"]
        ]
    else:
        rows += [(f"{row['pairs']} pairs", row) for row in held_out["by_pairs"]]
        rows += [(f"distance {_span(row)}", row) for row in held_out["by_distance"]]
    title = f"step {results['step']}, {results['length']} tokens"
    lines = [
        [title, *(column for _, column, _ in columns)],
        *([label, *(_show(row[name], form) for name, _, form in columns)] for label, row in rows),
    ]
    return "\n\n".join([table(lines), _gates(results["gates"])])


def _gates(gates: dict[str, Any]) -> str:
    if "none" in gates:
        return f"no picture of gates: {gates['none']}"
    lines = [["mean weight, by head", "online", "the answer's"]]
    if "on_answer" not in gates["layers"][0]:
        lines[0].pop()
    for layer in gates["layers"]:
        cells = [
            " ".join(f"{x:.2f}" for x in layer[n]) for n in ("online", "on_answer") if n in layer
        ]
        lines.append([f"block {layer['block']}", *cells])
    return table(lines)


def _span(row: dict[str, Any]) -> str:
    first, last = row["first"], row["last"]
    return f"{first}" if first == last else f"{first}-{last}"


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def table(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in lines
    )
