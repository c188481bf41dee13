"""A report as one HTML page that needs nothing else: style and pictures are inside."""

import base64
import functools
import itertools
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources

from mc_jax.evaluation.report.document import (
    Block,
    Cell,
    Code,
    Column,
    Document,
    Group,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
)

_TYPES = {"svg": "image/svg+xml", "png": "image/png"}


def render(document: Document) -> str:
    """The whole page."""
    style = resources.files(__package__).joinpath("page.css").read_text()
    ids = (f"table-{number}" for number in itertools.count(1))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(document.title)}</title>",
            f"<style>\n{style}</style>",
            "</head>",
            "<body>",
            "<header>",
            f"<h1>{escape(document.title)}</h1>",
            *(f"<p>{escape(line)}</p>" for line in document.lead),
            "</header>",
            _contents(document.sections),
            "<main>",
            *(_section(section, ids) for section in document.sections),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _contents(sections: Sequence[Section]) -> str:
    items = "".join(f'<li><a href="#{s.anchor}">{escape(s.short)}</a></li>' for s in sections)
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'


def _section(section: Section, ids: Iterator[str]) -> str:
    return "\n".join(
        [
            f'<section id="{section.anchor}" aria-labelledby="{section.anchor}-title">',
            f'<h2 id="{section.anchor}-title">{escape(section.title)}</h2>',
            *(_block(block, ids) for block in section.blocks),
            "</section>",
        ]
    )


@functools.singledispatch
def _block(block: Block, ids: Iterator[str]) -> str:
    raise TypeError(block)


@_block.register
def _(block: Text, ids: Iterator[str]) -> str:
    return f"<p>{escape(block.text)}</p>"


@_block.register
def _(block: Code, ids: Iterator[str]) -> str:
    # No line breaks may be added inside pre.
    code = f'<pre tabindex="0"><code>{escape(block.text)}</code></pre>'
    return f"<details><summary>{escape(block.title)}</summary>{code}</details>"


@_block.register
def _(block: Pictures, ids: Iterator[str]) -> str:
    return '<div class="pictures">' + "\n".join(map(_picture, block.pictures)) + "</div>"


def _picture(picture: Picture) -> str:
    kind = picture.name.rpartition(".")[2]
    data = base64.b64encode(picture.content).decode()
    wide = " wide" if picture.wide else ""
    return (
        f'<figure class="picture {kind}{wide}">'
        f'<div class="scroll" role="group" aria-label="{escape(picture.caption)}" tabindex="0">'
        f'<img src="data:{_TYPES[kind]};base64,{data}" alt="{escape(picture.alt)}"></div>'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


@_block.register
def _(block: Table, ids: Iterator[str]) -> str:
    name = next(ids)
    return "\n".join(
        [
            '<figure class="table">',
            f'<figcaption id="{name}">{escape(block.caption)}</figcaption>',
            f'<div class="scroll" role="group" aria-labelledby="{name}" tabindex="0">',
            f'<table aria-labelledby="{name}">',
            f"<thead>{_heads(block)}</thead>",
            *(_group(group, block.columns) for group in block.groups),
            "</table></div></figure>",
        ]
    )


def _heads(table: Table) -> str:
    """One row of headings, or two where some are shared."""
    shared = any(column.over for column in table.columns)
    span = ' rowspan="2"' if shared else ""
    upper = [f'<th scope="col"{span}>{escape(table.corner)}</th>']
    lower: list[str] = []
    for over, columns in itertools.groupby(table.columns, lambda column: column.over):
        names = list(columns)
        if over:
            upper.append(f'<th scope="colgroup" colspan="{len(names)}">{escape(over)}</th>')
        row, more = (lower, "") if over else (upper, span)
        for column in names:
            row.append(f'<th scope="col" class="{column.holds}"{more}>{escape(column.name)}</th>')
    return "".join(f"<tr>{''.join(row)}</tr>" for row in (upper, lower) if row)


def _group(group: Group, columns: Sequence[Column]) -> str:
    lines = ['<tbody class="paper">' if group.paper else "<tbody>"]
    if group.title:
        span = len(columns) + 1
        title = f"<span>{escape(group.title)}</span>"
        lines.append(f'<tr><th scope="rowgroup" colspan="{span}">{title}</th></tr>')
    for row in group.rows:
        cells = "".join(map(_cell, row.cells, columns))
        lines.append(f'<tr><th scope="row">{escape(row.label)}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody>"])


def _cell(cell: Cell, column: Column) -> str:
    text = escape(cell.text)
    if column.holds == "code" and text:
        text = f"<code>{text}</code>"
    if cell.best:
        text = f"<strong>{text}</strong>"
    return f'<td class="{column.holds}">{text}</td>'
