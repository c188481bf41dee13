"""A report as Markdown, with its pictures in files beside it."""

import functools
import re

from mc_jax.evaluation.report.document import (
    Block,
    Cell,
    Code,
    Column,
    Document,
    Pictures,
    Table,
    Text,
)


def render(document: Document, pictures: str) -> str:
    """The whole file.

    Args:
      document: the report.
      pictures: the folder of the pictures, as seen from the file.
    """
    parts = [f"# {escape(document.title)}", *map(escape, document.lead)]
    for section in document.sections:
        parts.append(f"## {escape(section.title)}")
        parts += [_block(block, pictures) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    # An underscore within a word is one.
    special = r"([\\`*\[\]|#~$]|(?<![^\W_])_|_(?![^\W_]))"
    return " ".join(re.sub(special, r"\\\1", text).split())


@functools.singledispatch
def _block(block: Block, pictures: str) -> str:
    raise TypeError(block)


@_block.register
def _(block: Text, pictures: str) -> str:
    return escape(block.text)


@_block.register
def _(block: Code, pictures: str) -> str:
    fence = "`" * (1 + max(map(len, re.findall("`+", block.text)), default=2))
    code = f"{fence}\n{block.text}\n{fence}"
    return f"<details><summary>{escape(block.title)}</summary>\n\n{code}\n\n</details>"


@_block.register
def _(block: Pictures, pictures: str) -> str:
    return "\n\n".join(
        f"![{escape(picture.alt)}]({pictures}/{picture.name})\n\n*{escape(picture.caption)}*"
        for picture in block.pictures
    )


@_block.register
def _(block: Table, pictures: str) -> str:
    heads = [f"{column.over} {column.name}".strip() for column in block.columns]
    lines = [
        _line([escape(block.corner), *map(escape, heads)]),
        _line(["---", *("--:" if c.holds == "numbers" else "---" for c in block.columns)]),
    ]
    for group in block.groups:
        if group.title:
            lines.append(_line([f"**{escape(group.title)}**", *("" for _ in block.columns)]))
        for row in group.rows:
            cells = [_cell(*pair) for pair in zip(row.cells, block.columns, strict=True)]
            lines.append(_line([escape(row.label), *cells]))
    return f"{escape(block.caption)}\n\n" + "\n".join(lines)


def _cell(cell: Cell, column: Column) -> str:
    if column.holds == "code" and cell.text:
        # Backticks take no escapes.
        plain = not re.search(r"[`|\n]", cell.text)
        return f"`{cell.text}`" if plain else f"<code>{escape(cell.text)}</code>"
    return f"**{escape(cell.text)}**" if cell.best else escape(cell.text)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
