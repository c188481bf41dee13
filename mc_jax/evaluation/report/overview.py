"""Sections around the numbers: the models, what caching changes, and how numbers were made."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mc_jax.evaluation.report import shown
from mc_jax.evaluation.report.collect import Found
from mc_jax.evaluation.report.document import Block, Cell, Code, Column, Row, Section, Text
from mc_jax.evaluation.report.document import text_table as table
from mc_jax.evaluation.report.models import described
from mc_jax.evaluation.results import Result


def lead(found: Found) -> list[str]:
    """What the report is of, in a line or two."""
    lines = []
    dates = sorted({result.content["date"] for result in found.results})
    if dates:
        days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        lines.append(f"Results of {days}, made with {_versions_of_all(found.results)}.")
    lines.append(
        "The paper's numbers stand beside ours where it has the same model; they are of models of "
        "760 million and 1.3 billion parameters and always marked as the paper's."
    )
    return lines


def models(found: Found) -> Section | None:
    """Every model: size, caching, data, training."""
    if not found.models:
        return None
    last = {c.model: c.records[-1] for c in found.curves}
    names = {
        "size": Column("blocks × width", holds="text"),
        "segments": Column("segments", holds="text"),
        "data": Column("data", holds="text"),
        "steps": Column("steps"),
        "seed": Column("seed"),
    }
    columns = [
        Column("parameters"),
        *names.values(),
        Column("tokens trained on"),
        Column("folder", holds="code"),
    ]
    rows, trained = [], [model for model in found.models if model.post_training is None]
    for model in trained:
        facts = {} if model.config is None else described(model.config)
        tokens = last.get(model, {}).get("tokens")
        cells = [
            "" if model.parameters is None else f"{model.parameters:,}",
            *(facts.get(name, "") for name in names),
            "" if tokens is None else f"{tokens:,.0f}",
            str(model.folder),
        ]
        rows.append(Row(model.label, [Cell(text) for text in cells]))
    blocks: list[Block] = [table("The models of this report", "model", columns, rows)]
    blocks += [
        Code(f"Every setting of {m.label}", json.dumps(m.config, indent=2))
        for m in trained
        if m.config is not None
    ]
    return Section("models", "Models", "Models", blocks)


def in_short(found: Found) -> Section | None:
    """What caching changes in each evaluation, in one table."""
    values = shown.summary(found)
    changes = shown.deltas(values)
    if not changes:
        return None
    names = list(dict.fromkeys(name for _, change in changes.values() for name in change))
    rows = []
    for model, (base, change) in changes.items():
        cells = [
            _changed(values[model][name].number, change[name]) if name in change else ""
            for name in names
        ]
        rows.append(Row(model.label, [Cell(base.label), *map(Cell, cells)]))
    columns = [Column("without caching", holds="text"), *map(Column, names)]
    caption = (
        "Each model's number, and in brackets the difference from the same model without caching. "
        "Less is better of bits per byte, more of the others."
    )
    blocks = [table(caption, "model", columns, rows)]
    return Section("in-short", "In short", "What caching changes, in short", blocks)


def _changed(number: float, change: float) -> str:
    digits = 2 if abs(number) >= 10 else 4
    return f"{number:.{digits}f} ({change:+.{digits}f})"


def left_out(found: Found) -> Section | None:
    """Damaged files, and results that the report has no section for."""
    blocks: list[Block] = []
    if found.left_out:
        rows = [Row(line, []) for line in found.left_out]
        blocks.append(table("Damaged files, which no number is from", "file", [], rows))
    if found.unknown:
        columns = [Column("file", holds="code")]
        rows = [Row(x.kind, [Cell(str(x.path))]) for x in found.unknown]
        blocks.append(table("Results of kinds without a section", "kind", columns, rows))
    return Section("left-out", "Left out", "Left out", blocks) if blocks else None


def sources(found: Found) -> Section | None:
    """For every result the command that makes it again, the day, the versions and the file."""
    if not found.results:
        return None
    labels = {x.result.path: x.model.label for x in found.evaluations}
    labels |= {x.result.path: x.model.label for x in found.scores}
    labels |= {x.result.path: x.model.label for x in found.needles}
    labels |= {x.result.path: x.name for x in found.sweeps}
    versions = list(dict.fromkeys(_versions(result) for result in found.results))
    columns = [
        Column("result", holds="text"),
        Column("step"),
        Column("command", holds="code"),
        Column("day", holds="text"),
        Column("file", holds="code"),
    ]
    if len(versions) > 1:
        columns.append(Column("versions", holds="text"))
    rows = []
    for result in found.results:
        content = result.content
        step = content.get("step")
        cells = [
            _what(content),
            f"{step:,}" if isinstance(step, int) else "",
            content["command"],
            content["date"],
            str(result.path),
        ]
        if len(versions) > 1:
            cells.append(_versions(result))
        label = labels.get(result.path, result.kind)
        rows.append(Row(label, [Cell(text) for text in cells]))
    blocks: list[Block] = []
    if len(versions) == 1:
        blocks.append(Text(f"All numbers were made with {versions[0]}."))
    blocks.append(table("How every number is made again", "model", columns, rows))
    return Section("sources", "Commands", "Commands and versions", blocks)


def _what(content: Mapping[str, Any]) -> str:
    """Which result of its kind."""
    parts = [content["kind"]]
    for name in ("task", "length"):
        if isinstance(content.get(name), str | int):
            parts.append(f"{name} {content[name]}")
    return ", ".join(parts)


def _versions(result: Result) -> str:
    versions = dict(result.content["versions"])
    if "lm_eval" in result.content:  # of the harness's results alone
        versions["lm_eval"] = result.content["lm_eval"]
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _versions_of_all(results: Sequence[Result]) -> str:
    versions = list(dict.fromkeys(map(_versions, results)))
    return versions[0] if len(versions) == 1 else f"{len(versions)} sets of versions"
