"""Sections of what a run and `eval.py` leave: curves, held-out text, recall and gates."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mc_jax.evaluation.report import charts, shown
from mc_jax.evaluation.report.collect import Curve, Found
from mc_jax.evaluation.report.document import (
    Block,
    Cell,
    Column,
    Picture,
    Pictures,
    Row,
    Section,
    Text,
    text_table,
)
from mc_jax.evaluation.report.kinds import Evaluation, Number, Span
from mc_jax.evaluation.report.models import base_of

_POINTS = 400  # most points of a line: more than a picture can tell apart
_TASKS = {"text": "text", "mqar": "recall", "needles": "needles"}


def curves(found: Found) -> Section | None:
    """Loss over tokens of all runs, a picture for each task."""
    pictures = []
    for task in dict.fromkeys(curve.model.task for curve in found.curves):
        of_task = [curve for curve in found.curves if curve.model.task == task]
        name = _TASKS.get(task or "", task or "an unknown task")
        lines = [line for curve in of_task for line in _lines(found, curve)]
        limits = _limits(of_task)
        picture = charts.lines(
            lines, "tokens", "loss (nats per token)", large_x=True, limits=limits
        )
        ends = "; ".join(f"{curve.model.label} {_end(curve)}" for curve in of_task)
        caption = f"Loss on {name}: held-out (dots) and, faint, of training"
        alt = f"Loss over tokens of training on {name}. At the end: {ends}"
        pictures.append(Picture(f"curves-{task}.svg", picture, alt, caption))
    return Section("curves", "Training", "Training", [Pictures(pictures)]) if pictures else None


def text(found: Found) -> Section | None:
    """Held-out text: overall, and by position in the context."""
    evaluations = shown.evaluations(found, "text")
    if not evaluations:
        return None
    columns = [
        *(Column(name) for name in ("step", "length", "tokens")),
        *(Column(name) for name in ("nats a token", "perplexity", "bits per byte")),
        Column("against no caching"),
    ]
    rows = []
    for x in evaluations:
        numbers = [f"{x.step:,}", f"{x.length:,}", f"{x.overall['tokens']:,}"]
        numbers += [
            _show(x.overall.get(name), form)
            for name, form in (("loss", ".4f"), ("perplexity", ".3f"), ("bits_per_byte", ".4f"))
        ]
        numbers.append(_change(evaluations, x, "bits_per_byte"))
        rows.append(Row(x.model.label, [Cell(text) for text in numbers]))
    caption = "Held-out text. The last column is the difference in bits per byte; less is better."
    blocks: list[Block] = [text_table(caption, "model", columns, rows)]
    lines = [
        charts.Line(
            x.model.label,
            [float(np.sqrt(max(span.first, 1) * (span.last + 1))) for span in x.by_position],
            _values(x.by_position),
            found.models.index(x.model),
        )
        for x in evaluations
        if x.by_position
    ]
    if lines:
        picture = charts.lines(
            lines, "position in the context (tokens)", "bits per byte", log_x=True
        )
        alt = "Bits per byte over the position in the context; the table has the numbers"
        blocks.append(
            Pictures([Picture("positions.svg", picture, alt, "Bits per byte by position")])
        )
        caption = "Bits per byte by position in the context"
        blocks.append(_by_span(caption, evaluations, [x.by_position for x in evaluations]))
    return Section("text", "Held-out text", "Held-out text", blocks)


def recall(found: Found) -> Section | None:
    """Associative recall: overall, by pairs and by distance."""
    evaluations = shown.evaluations(found, "mqar")
    if not evaluations:
        return None
    pairs = sorted({count for x in evaluations for count, _ in x.by_pairs})
    columns = [
        *(Column(name) for name in ("step", "length", "queries", "overall")),
        Column("against no caching"),
        *(Column(f"{count}", "pairs") for count in pairs),
    ]
    rows = []
    for x in evaluations:
        by_pairs = dict(x.by_pairs)
        numbers = [f"{x.step:,}", f"{x.length:,}", f"{x.overall['tokens']:,}"]
        numbers.append(_show(x.overall.get("accuracy"), ".4f"))
        numbers.append(_change(evaluations, x, "accuracy"))
        numbers += [_show(by_pairs.get(count), ".4f") for count in pairs]
        rows.append(Row(x.model.label, [Cell(text) for text in numbers]))
    caption = "Recall: the share of queries that are answered right; more is better."
    blocks: list[Block] = [text_table(caption, "model", columns, rows)]
    by_pairs_lines, by_distance_lines = [], []
    for x in evaluations:
        label, style = x.model.label, found.models.index(x.model)
        counts, values = [count for count, _ in x.by_pairs], _nans([v for _, v in x.by_pairs])
        by_pairs_lines.append(charts.Line(label, counts, values, style))
        starts = [span.first for span in x.by_distance]
        by_distance_lines.append(charts.Line(label, starts, _values(x.by_distance), style))
    limits = (-0.03, 1.03)
    over_pairs = charts.lines(
        by_pairs_lines, "key-value pairs", "recall", log_x=True, limits=limits
    )
    over_distance = charts.lines(
        by_distance_lines,
        "tokens from the value to the query, up to twice as many",
        "recall",
        log_x=True,
        limits=limits,
    )
    alt = "Recall over the {}; the table has the numbers"
    pictures = [
        Picture("pairs.svg", over_pairs, alt.format("number of pairs"), "Recall by pairs"),
        Picture("distance.svg", over_distance, alt.format("distance"), "Recall by distance"),
    ]
    blocks.append(Pictures(pictures))
    caption = "Recall by distance from the value to the query, in tokens"
    blocks.append(_by_span(caption, evaluations, [x.by_distance for x in evaluations]))
    return Section("recall", "Recall", "Associative recall", blocks)


def answers(found: Found) -> Section | None:
    """Held-out needles of models that were trained on them, by task and depth."""
    evaluations = shown.evaluations(found, "needles")
    if not evaluations:
        return None
    places = sorted({(task, depth) for x in evaluations for task, depth, _ in x.by_depth})
    columns = [
        *(Column(name) for name in ("step", "length", "overall", "against no caching")),
        *(Column(f"{depth:g}%", f"S-NIAH-{task}, depth") for task, depth in places),
    ]
    rows = []
    for x in evaluations:
        by_depth = {(task, depth): exact for task, depth, exact in x.by_depth}
        numbers = [f"{x.step:,}", f"{x.length:,}", _show(x.overall.get("exact"), ".4f")]
        numbers.append(_change(evaluations, x, "exact"))
        numbers += [_show(by_depth.get(place), ".4f") for place in places]
        rows.append(Row(x.model.label, [Cell(text) for text in numbers]))
    caption = "The share of answers of which every token is the likeliest; more is better."
    table = text_table(caption, "model", columns, rows)
    return Section("answers", "Held-out needles", "Held-out needles", [table])


def gates(found: Found) -> Section | None:
    """Where the gates look: the maps that `eval.py` has drawn, and their means."""
    tasks = dict.fromkeys(x.task for x in found.evaluations)
    evaluations = [x for task in tasks for x in shown.evaluations(found, task) if x.gates]
    if not evaluations:
        return None
    rows, pictures = [], []
    for number, x in enumerate(evaluations, 1):
        label = x.model.label
        for block, online, on_answer in x.gates:
            weights = [" ".join(f"{w:.2f}" for w in heads) for heads in (online, on_answer)]
            rows.append(Row(f"{label}, block {block}", [Cell(text) for text in weights]))
        path = x.result.path.parent / "gates.png"
        if content := _picture(path):
            others = list(path.parent.glob("step_*.json"))
            note = "" if len(others) == 1 else ", of the evaluation that was made last"
            alt = f"Heat maps of {label}: for each token (rows) the weights of the memories"
            caption = f"{label}: weights of the memories (columns) for each token (rows){note}"
            pictures.append(Picture(f"gates-{number}.png", content, alt, caption, wide=True))
    columns = [Column("online memory"), Column("the memory with the answer")]
    caption = "Mean weight by head, among the tokens that see a cached memory"
    note = (
        "One held-out example each. A row's weights add up to 1; the online memory is the running "
        "one of the token's own segment."
    )
    blocks: list[Block] = [Text(note)]
    if pictures:
        blocks.append(Pictures(pictures))
    blocks.append(text_table(caption, "layer", columns, rows))
    return Section("gates", "Gates", "Where the gates look", blocks)


def _lines(found: Found, curve: Curve) -> list[charts.Line]:
    """The losses of a run: of training in the background, and held-out where it was measured."""
    style = found.models.index(curve.model)
    train = [r for r in curve.records if "loss" in r and "tokens" in r]
    held_out = [r for r in train if "held_out_loss" in r]
    size = -(-len(train) // _POINTS) or 1
    tokens, losses = (
        [float(np.mean([r[name] for r in train[i : i + size]])) for i in range(0, len(train), size)]
        for name in ("tokens", "loss")
    )
    label = curve.model.label
    lines = [charts.Line("" if held_out else label, tokens, losses, style, faint=True)]
    if held_out:
        losses = [r["held_out_loss"] for r in held_out]
        lines.append(charts.Line(label, [r["tokens"] for r in held_out], losses, style))
    return lines


def _limits(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """Of the losses after the first fall, which would leave no room for the rest; or None."""
    losses = [
        record[name]
        for curve in curves
        for record in curve.records[len(curve.records) // 20 :]
        for name in ("loss", "held_out_loss")
        if math.isfinite(record.get(name, math.nan))
    ]
    if not losses or min(losses) == max(losses):
        return None
    margin = 0.05 * (max(losses) - min(losses))
    return min(losses) - margin, max(losses) + margin


def _end(curve: Curve) -> str:
    """The last loss in words."""
    for name, what in (("held_out_loss", "held-out"), ("loss", "training")):
        for record in reversed(curve.records):
            if name in record:
                return f"{record[name]:.3f} ({what})"
    return "no loss"


def _by_span(
    caption: str, evaluations: Sequence[Evaluation], spans: Sequence[Sequence[Span]]
) -> Any:
    """A table with a column for each bucket."""
    places = sorted({(span.first, span.last) for row in spans for span in row})
    columns = [Column(f"{a:,}" if a == b else f"{a:,}-{b:,}") for a, b in places]
    rows = []
    for x, row in zip(evaluations, spans, strict=True):
        values = {(span.first, span.last): span.value for span in row}
        cells = [Cell(_show(values.get(place), ".4f")) for place in places]
        rows.append(Row(x.model.label, cells))
    return text_table(caption, "model", columns, rows)


def _change(evaluations: Sequence[Evaluation], own: Evaluation, name: str) -> str:
    """A number less that of the model without caching, evaluated the same way; or nothing."""
    by_model = {x.model: x for x in evaluations}
    base = base_of(own.model, list(by_model))
    if base is None:
        return ""
    other = by_model[base]
    value, before = own.overall.get(name), other.overall.get(name)
    same = [(x.step, x.length, x.overall["tokens"]) for x in (own, other)]
    if value is None or before is None or same[0] != same[1]:
        return ""
    return f"{value - before:+.4f}"


def _picture(path: Path) -> bytes | None:
    """A picture that is there, or None."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _values(spans: Sequence[Span]) -> list[float]:
    return _nans([span.value for span in spans])


def _nans(values: Sequence[Number]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _show(value: Number, form: str) -> str:
    return "" if value is None else format(value, form)
