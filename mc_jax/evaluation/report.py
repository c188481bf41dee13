"""What the terminal shows of an evaluation."""

from collections.abc import Sequence
from typing import Any

_COLUMNS = {  # of a table: title and format of each number
    "tokens": ("tokens", "{:,d}"),
    "accuracy": ("recall", "{:.4f}"),
    "loss": ("nats/token", "{:.4f}"),
    "perplexity": ("perplexity", "{:.3f}"),
    "bits_per_byte": ("bits/byte", "{:.4f}"),
}
_SHOWN = {
    "text": ("tokens", "loss", "perplexity", "bits_per_byte"),
    "mqar": ("tokens", "accuracy", "loss"),
}


def summary(results: dict[str, Any]) -> str:
    """The results of `evaluate` as tables for people."""
    held_out, names = results["held_out"], _SHOWN[results["task"]]
    rows = [("overall", held_out)]
    if results["task"] == "text":
        rows += [(f"position {_span(row)}", row) for row in held_out["by_position"]]
    else:
        rows += [(f"{row['pairs']} pairs", row) for row in held_out["by_pairs"]]
        rows += [(f"distance {_span(row)}", row) for row in held_out["by_distance"]]
    title = f"step {results['step']}, {results['length']} tokens"
    lines = [
        [title, *(_COLUMNS[name][0] for name in names)],
        *([label, *(_show(row, name) for name in names)] for label, row in rows),
    ]
    return "\n\n".join([_table(lines), _gates(results["gates"])])


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
    return _table(lines)


def _span(row: dict[str, Any]) -> str:
    first, last = row["first"], row["last"]
    return f"{first}" if first == last else f"{first}-{last}"


def _show(row: dict[str, Any], name: str) -> str:
    return "-" if row[name] is None else _COLUMNS[name][1].format(row[name])


def _table(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in lines
    )
