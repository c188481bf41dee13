"""What a report consists of, whether it becomes a page or a Markdown file."""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Code(NamedTuple):
    """Text as it is in a file; the page shows it when its title is clicked."""

    title: str
    text: str


class Cell(NamedTuple):
    """Of a table.

    Attributes:
      text: what stands in it; empty where there is nothing.
      best: whether it is the best of its group.
    """

    text: str
    best: bool = False


class Column(NamedTuple):
    """Of a table.

    Attributes:
      name: its heading.
      over: a second heading above it, shared with the neighbours that have the same; or empty.
      holds: numbers to the right, text to the left, code as it is typed.
    """

    name: str
    over: str = ""
    holds: Literal["numbers", "text", "code"] = "numbers"


class Row(NamedTuple):
    """Of a table: its heading, and a cell for each column."""

    label: str
    cells: Sequence[Cell]


class Group(NamedTuple):
    """Rows that belong together.

    Attributes:
      title: a heading over them, or empty.
      rows: at least one.
      paper: whether the numbers are the paper's.
    """

    title: str
    rows: Sequence[Row]
    paper: bool = False


class Table(NamedTuple):
    """A table; `corner` is the heading of the rows' headings."""

    caption: str
    corner: str
    columns: Sequence[Column]
    groups: Sequence[Group]


class Picture(NamedTuple):
    """A picture.

    Attributes:
      name: of its file, unique in the report: name.svg or name.png.
      content: of its file.
      alt: what it shows, for who does not see it.
      caption: below it.
      wide: whether it takes the page's whole width.
    """

    name: str
    content: bytes
    alt: str
    caption: str
    wide: bool = False


class Pictures(NamedTuple):
    """Pictures beside each other where there is room."""

    pictures: Sequence[Picture]


Block = Text | Code | Table | Pictures


class Section(NamedTuple):
    """A part with a heading; `anchor` is what links to it name, `short` what the contents show."""

    anchor: str
    short: str
    title: str
    blocks: Sequence[Block]


class Document(NamedTuple):
    """A report."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]


def text_table(caption: str, corner: str, columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    """A table of one group, without the columns that hold nothing."""
    filled = [any(row.cells[i].text for row in rows) for i in range(len(columns))]
    return Table(
        caption,
        corner,
        list(itertools.compress(columns, filled)),
        [Group("", [Row(row.label, list(itertools.compress(row.cells, filled))) for row in rows])],
    )


def with_best(
    rows: Sequence[Sequence[float | None]], texts: Sequence[Sequence[str]], lower: Sequence[bool]
) -> list[list[Cell]]:
    """Cells of rows that compete: the best of each column is marked, where two or more do.

    Args:
      rows: the numbers; None where there is none.
      texts: how each is shown.
      lower: for each column, whether less is better.
    """
    best: list[float | None] = []
    for column, less in zip(zip(*rows, strict=True), lower, strict=True):
        values = [value for value in column if value is not None]
        found = (min if less else max)(values, default=None)
        # Where all are equal none is the best.
        best.append(found if len(set(values)) > 1 else None)
    return [
        [
            Cell(text, value is not None and value == top)
            for value, text, top in zip(values, shown, best, strict=True)
        ]
        for values, shown in zip(rows, texts, strict=True)
    ]
