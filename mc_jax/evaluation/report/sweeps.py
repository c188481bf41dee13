"""Sections of sweeps over many runs (Figure 5, Table 5) and of throughput (Figure 4)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mc_jax.errors import InputError
from mc_jax.evaluation.report import charts, paper
from mc_jax.evaluation.report.document import (
    Block,
    Cell,
    Column,
    Group,
    Picture,
    Pictures,
    Row,
    Section,
    Table,
    Text,
    text_table,
)
from mc_jax.evaluation.report.kinds import Sweep, SweepCell

_ABLATIONS = {
    "lm_ppl": "perplexity",
    "commonsense_acc": "common sense",
    "retrieval_acc": "retrieval",
}


def sweep_sections(sweeps: Sequence[Sweep]) -> list[Section]:
    """A section for each sweep."""
    return [_sweep(number, sweep) for number, sweep in enumerate(sweeps, 1)]


def ablation_table() -> Table:
    """The paper's Table 5."""
    groups = []
    for model, variants in paper.ablations().items():
        rows = [
            Row(name, [Cell("" if row is None else repr(row[key])) for key in _ABLATIONS])
            for name, row in variants.items()
        ]
        groups.append(Group(f"the paper's, {model}", rows, paper=True))
    caption = "The paper's Table 5: averages of its 1.3B models. It leaves two rows unfilled."
    return Table(caption, "variant", [Column(name) for name in _ABLATIONS.values()], groups)


def read_throughput(path: Path) -> Mapping[str, Any]:
    """The results of `python -m benchmarks.throughput`.

    Raises:
      InputError: a file that is not there, or another one.
    """
    try:
        content = json.loads(path.read_bytes())
        rows = [row for row in content["rows"] if row["part"] == "step"]
        for row in rows:
            str(row["model"]), int(row["length"]), float(row.get("tokens_per_s") or 0)
        str(content["device"]), str(content["date"]), dict(content["versions"])
        if not rows:
            raise ValueError("no row of a training step")
    except (OSError, ValueError, KeyError, TypeError) as error:
        allowed = f"what `python -m benchmarks.throughput` writes ({error!r})"
        raise InputError("--throughput", str(path), allowed) from None
    return content | {"rows": rows}


def throughput_section(content: Mapping[str, Any]) -> Section:
    """Figure 4: tokens per second of a training step over the length."""
    rows = content["rows"]
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    lengths = sorted({int(row["length"]) for row in rows})
    speeds = {
        (str(row["model"]), int(row["length"])): float(row["tokens_per_s"])
        for row in rows
        if row.get("tokens_per_s") is not None
    }
    table_rows, lines = [], []
    for style, model in enumerate(models):
        here = [length for length in lengths if (model, length) in speeds]
        lines.append(charts.Line(model, here, [speeds[model, n] for n in here], style))
        cells = [Cell(f"{speeds[model, n]:,.0f}" if (model, n) in speeds else "") for n in lengths]
        table_rows.append(Row(model, cells))
    picture = charts.lines(
        lines, "tokens of a sequence", "tokens per second", log_x=True, log_y=True
    )
    columns = [Column(f"{n:,}") for n in lengths]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    note = f"Measured on {content['device']}, {content['date']}; {versions}."
    blocks: list[Block] = [
        Text(note),
        text_table("Tokens per second of a training step by length", "model", columns, table_rows),
        Pictures(
            [
                Picture(
                    "throughput.svg",
                    picture,
                    "Tokens per second over the length; the table has the numbers",
                    "Tokens per second of a training step over the length",
                )
            ]
        ),
    ]
    return Section("throughput", "Throughput", "Training throughput (the paper's Figure 4)", blocks)


def _sweep(number: int, sweep: Sweep) -> Section:
    notes = [f"{sweep.finished} of {sweep.planned} runs are finished; {sweep.better} is better."]
    if sweep.choice:
        notes.append(f"{sweep.choice}.")
    blocks: list[Block] = [Text(" ".join(notes)), _cells(sweep)]
    path = sweep.result.path.with_suffix(".png")
    if path.is_file():
        picture = Picture(
            f"sweep-{number}.png",
            path.read_bytes(),
            f"{sweep.title}: {sweep.label} by {', '.join(sweep.axes)}; the table has the numbers",
            f"{sweep.title}: {sweep.label}",
            wide=True,
        )
        blocks.append(Pictures([picture]))
    figure = ""
    if sweep.name.startswith("table5"):
        blocks.append(ablation_table())
        figure = " (the paper's Table 5)"
    elif sweep.name.startswith("figure5"):
        figure = " (the paper's Figure 5)"
    title = f"{sweep.title}{figure}"
    return Section(f"sweep-{number}", f"Sweep {sweep.name}", title, blocks)


def _cells(sweep: Sweep) -> Table:
    """Mean and extremes of every cell; the last axis of numbers becomes the columns."""
    numbers = [
        place
        for place in range(len(sweep.axes))
        if all(isinstance(cell.place[place], int | float) for cell in sweep.cells)
        and len({cell.place[place] for cell in sweep.cells}) > 1
    ]
    across = numbers[-1] if numbers and len(sweep.axes) > 1 else None
    by_row: dict[tuple[Any, ...], dict[Any, SweepCell]] = {}
    for cell in sweep.cells:
        column = None if across is None else cell.place[across]
        row = tuple(value for place, value in enumerate(cell.place) if place != across)
        by_row.setdefault(row, {})[column] = cell
    values = list(dict.fromkeys(c for row in by_row.values() for c in row))
    if across is not None:
        values.sort()
    over = "" if across is None else sweep.axes[across]
    columns = [Column(sweep.label if value is None else _name(value), over) for value in values]
    if sweep.chosen_axis is not None:
        columns.append(Column(f"chosen {sweep.chosen_axis}"))
    rows = []
    for place, cells in by_row.items():
        texts = [_spread(cells.get(value)) for value in values]
        if sweep.chosen_axis is not None:
            chosen = dict.fromkeys(x.chosen for x in cells.values() if x.chosen is not None)
            texts.append(", ".join(map(_name, chosen)))
        rows.append(Row(", ".join(map(_name, place)), [Cell(text) for text in texts]))
    corner = ", ".join(axis for place, axis in enumerate(sweep.axes) if place != across)
    seeds = sorted({cell.seeds for cell in sweep.cells})
    caption = (
        f"{sweep.label}: mean of {' or '.join(map(str, seeds))} seeds (lowest\N{EN DASH}highest)"
    )
    return text_table(caption, corner, columns, rows)


def _spread(cell: SweepCell | None) -> str:
    if cell is None:
        return ""
    lost = f", {cell.diverged} diverged" if cell.diverged else ""
    if cell.mean is None or cell.lowest is None or cell.highest is None:
        return lost.removeprefix(", ")
    if cell.seeds < 2:
        return f"{cell.mean:.3f}{lost}"
    return f"{cell.mean:.3f} ({cell.lowest:.3f}\N{EN DASH}{cell.highest:.3f}){lost}"


def _name(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"
