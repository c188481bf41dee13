"""Sections of the paper's tables 1 to 4: our numbers, and beside them the paper's."""

from collections.abc import Mapping, Sequence

import numpy as np

from mc_jax.evaluation.report import charts, paper, shown
from mc_jax.evaluation.report.collect import Found
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
    with_best,
)
from mc_jax.evaluation.report.kinds import Needles, Score
from mc_jax.evaluation.report.models import Model, comparable
from mc_jax.evaluation.report.paper import PaperColumn, PaperTable
from mc_jax.evaluation.report.shown import Values


def harness_tables(found: Found) -> list[Section]:
    """Tables 1, 3 and 4, and all that the harness has measured."""
    sections = []
    for table, short in (
        (paper.language_modelling(), "Language modelling"),
        (paper.retrieval(), "Retrieval"),
        (paper.long_context(), "LongBench"),
    ):
        if values := shown.scores(found, table):
            columns = [c for c in table.columns if any(c.key in own for own in values.values())]
            blocks = _comparison(table, columns, values)
            if len(columns) < len(table.columns):
                blocks.append(Text(f"Of {len(table.columns)} columns {len(columns)} are measured."))
            blocks += _partial(found.scores, table)
            sections.append(Section(table.anchor, short, table.title, blocks))
    if found.scores:
        sections.append(
            Section("harness", "All tasks", "All tasks of the harness", [_tasks(found)])
        )
    return sections


def needle_table(found: Found) -> Section | None:
    """Table 2, and accuracy by length and depth."""
    by_model = shown.needles(found)
    if not by_model:
        return None
    table, values = paper.needles(), {m: shown.needle_values(x) for m, x in by_model.items()}
    table = table._replace(columns=_needle_columns(by_model))
    samples = sorted({x.samples for results in by_model.values() for x in results})
    note = f"Accuracy in percent, of {' or '.join(f'{n:,}' for n in samples)} samples a cell."
    blocks = [Text(note), *_comparison(table, table.columns, values)]
    pictures = [
        _heat_map(found.models.index(model) + 1, model, results)
        for model, results in by_model.items()
        if any(x.by_depth for x in results)
    ]
    if pictures:
        blocks.append(Pictures(pictures))
    return Section(table.anchor, "Needles", table.title, blocks)


def _comparison(
    table: PaperTable, columns: Sequence[PaperColumn], values: Mapping[Model, Values]
) -> list[Block]:
    """A table of our numbers and the paper's of the same models, and one of what caching adds."""
    papers = {}
    for number, size in enumerate(table.sizes):
        rows = {m: table.row(number, m.family, m.caching) for m in values if not m.variant}
        # Models that are called the same have one row.
        found = {_paper_name(m): row for m, row in rows.items() if row}
        if found:
            papers[size] = found
    listed = [*values.values(), *(row for rows in papers.values() for row in rows.values())]
    columns = [c for c in columns if any(c.key in row for row in listed)]
    groups = [_ours(columns, values)]
    groups += [_papers(columns, _paper_title(size), rows) for size, rows in papers.items()]
    headings = [_heading(column) for column in columns]
    caption = "Percent, more is better"
    caption += "; of perplexities (ppl) less." if any(c.lower for c in columns) else "."
    if any(cell.best for group in groups for row in group.rows for cell in row.cells):
        caption += " Bold: the best of a group."
    if not papers:
        caption += " The paper has no row of these models."
    blocks: list[Block] = [Table(caption, "model", headings, groups)]
    if (changes := _changes(table, columns, values)) is not None:
        blocks.append(changes)
    return blocks


def _ours(columns: Sequence[PaperColumn], values: Mapping[Model, Values]) -> Group:
    numbers = [
        [own[c.key].number if c.key in own else None for c in columns] for own in values.values()
    ]
    texts = [["" if x is None else f"{x:.2f}" for x in row] for row in numbers]
    cells = [[Cell(text) for text in row] for row in texts]
    if comparable(list(values)):
        conditions = [
            {own[c.key].conditions for own in values.values() if c.key in own} for c in columns
        ]
        fair = [
            [x if len(c) == 1 else None for x, c in zip(row, conditions, strict=True)]
            for row in numbers
        ]
        cells = with_best(fair, texts, [c.lower for c in columns])
    return Group("ours", [Row(_with_size(m), row) for m, row in zip(values, cells, strict=True)])


def _papers(
    columns: Sequence[PaperColumn], title: str, rows: Mapping[str, Mapping[str, float]]
) -> Group:
    numbers = [[row.get(c.key) for c in columns] for row in rows.values()]
    digits = [max(map(_decimals, column)) for column in zip(*numbers, strict=True)]
    texts = [
        ["" if x is None else f"{x:.{n}f}" for x, n in zip(row, digits, strict=True)]
        for row in numbers
    ]
    cells = with_best(numbers, texts, [c.lower for c in columns])
    return Group(title, [Row(n, row) for n, row in zip(rows, cells, strict=True)], paper=True)


def _decimals(number: float | None) -> int:
    """How many the paper prints."""
    return 0 if number is None else len(repr(number).partition(".")[2])


def _changes(
    table: PaperTable, columns: Sequence[PaperColumn], values: Mapping[Model, Values]
) -> Table | None:
    """What caching adds, ours and the paper's; None without a model to compare with."""
    changes = shown.deltas(values)
    if not changes:
        return None
    keys = {key for _, change in changes.values() for key in change}
    columns = [c for c in columns if c.key in keys]
    ours = [
        Row(f"{m.label} − {base.label}", _signed([change.get(c.key) for c in columns]))
        for m, (base, change) in changes.items()
    ]
    groups = [Group("ours", ours)]
    for number, size in enumerate(table.sizes):
        rows = {}
        for m, (base, _) in changes.items():
            cached = table.row(number, m.family, m.caching)
            plain = table.row(number, base.family, base.caching)
            if cached and plain and not m.variant:
                change = [
                    cached[c.key] - plain[c.key] if c.key in cached and c.key in plain else None
                    for c in columns
                ]
                rows[f"{_paper_name(m)} − {_paper_name(base)}"] = _signed(change)
        if rows:
            listed = [Row(label, cells) for label, cells in rows.items()]
            groups.append(Group(_paper_title(size), listed, paper=True))
    caption = "What caching changes: the model minus the same one without caching."
    return Table(caption, "difference", [_heading(c) for c in columns], groups)


def _signed(changes: Sequence[float | None]) -> list[Cell]:
    return [Cell("" if x is None else f"{x:+.2f}") for x in changes]


def _heading(column: PaperColumn) -> Column:
    return Column(column.name, column.over)


def _paper_title(size: str) -> str:
    return f"the paper's, {size} parameters" if size else "the paper's"


def _paper_name(model: Model) -> str:
    return f"{model.family}+{model.caching}" if model.caching else model.family


def _with_size(model: Model) -> str:
    if not model.size or f"({model.size})" in model.label:
        return model.label
    return f"{model.label}, {model.size}"


def _partial(scores: Sequence[Score], table: PaperTable) -> list[Block]:
    """Which numbers are of a part of the documents only."""
    parts = sorted(
        {
            f"{x.name}: {x.documents:,}"
            for x in scores
            if any(name == table.key for name, _ in x.columns)
            and x.settings.get("limit") is not None
        }
    )
    if not parts:
        return []
    return [Text(f"Ours are of the first documents of some tasks only ({'; '.join(parts)}).")]


def _tasks(found: Found) -> Table:
    """Every metric with its standard error."""
    rows = []
    order = {model: number for number, model in enumerate(found.models)}
    for score in sorted(found.scores, key=lambda x: (order[x.model], x.task, x.context or 0)):
        settings = ", ".join(
            f"{name} {value}" for name, value in score.settings.items() if value is not None
        )
        for name, (value, error) in score.metrics.items():
            cells = [
                score.name,
                name,
                "" if value is None else f"{value:.4f}",
                "" if error is None else f"{error:.4f}",
                f"{score.documents:,}",
                f"{score.step:,}",
                settings,
            ]
            rows.append(Row(score.model.label, [Cell(text) for text in cells]))
    columns = [
        Column("task", holds="text"),
        Column("metric", holds="text"),
        Column("value"),
        Column("standard error"),
        Column("documents"),
        Column("step"),
        Column("settings", holds="text"),
    ]
    return text_table("Every metric as the harness gives it.", "model", columns, rows)


def _needle_columns(by_model: Mapping[Model, Sequence[Needles]]) -> tuple[PaperColumn, ...]:
    """Of the tasks that were measured, at our lengths and the paper's."""
    ours = {(x.task, x.length) for results in by_model.values() for x in results}
    tasks = {task for task, _ in ours}
    places = sorted(ours | {(task, length) for task in tasks for length in paper.LENGTHS})
    return tuple(
        PaperColumn(paper.needle_key(task, n), paper.length_name(n), f"S-NIAH-{task}")
        for task, n in places
    )


def _heat_map(number: int, model: Model, results: Sequence[Needles]) -> Picture:
    """Accuracy over length and depth for each task of a model."""
    panels = []
    for task in sorted({x.task for x in results}):
        own = [x for x in results if x.task == task and x.by_depth]
        depths = sorted({depth for x in own for depth, _ in x.by_depth})
        values = np.full((len(depths), len(own)), np.nan)
        for column, x in enumerate(own):
            for depth, accuracy in x.by_depth:
                if accuracy is not None:
                    values[depths.index(depth), column] = accuracy
        names = [paper.length_name(x.length) for x in own]
        rows = [f"{depth:g}%" for depth in depths]
        panels.append(charts.Panel(f"S-NIAH-{task}", rows, names, values))
    picture = charts.heat(panels, "depth of the needle", "tokens")
    alt = f"Heat map of {model.label}: accuracy by tokens and depth of the needle. "
    alt += "; ".join(
        f"S-NIAH-{x.task} at {x.length:,} tokens {100 * x.accuracy:.1f}%" for x in results
    )
    caption = f"{model.label}: accuracy in percent by length and depth of the needle"
    return Picture(f"needles-{number}.svg", picture, alt, caption, wide=True)
