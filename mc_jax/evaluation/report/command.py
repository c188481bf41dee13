"""The command `eval.py report`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mc_jax.errors import InputError
from mc_jax.evaluation.report import markdown, missing, overview, page, sweeps, tables, training
from mc_jax.evaluation.report.collect import Found, collect
from mc_jax.evaluation.report.document import Document, Pictures, Section
from mc_jax.evaluation.results import make_folder
from mc_jax.files import replace
from mc_jax.training.cli import Parser

_DOCUMENT = """Everything that was measured, on one page, with the paper's numbers beside it.

  python eval.py report --workdir runs/a runs/b
      writes report/report.html, which needs nothing else, and report/report.md with its pictures
      in report/pictures/

The numbers are those of the result files in the folders and in all folders in them. A model is
compared with the same one without caching if that is among them. A damaged file is named and left
out.
"""


def report_command(arguments: list[str]) -> int:
    """Run `eval.py report`; returns the exit code."""
    parser = Parser(_DOCUMENT)
    parser.add_argument(
        "--workdir", metavar="FOLDER", nargs="+", required=True, help="runs, sweeps, or above them"
    )
    parser.add_argument(
        "--to", metavar="FOLDER", default="report", help="made if it is not there; default: report"
    )
    parser.add_argument(
        "--throughput", metavar="FILE", help="results of benchmarks.throughput, for Figure 4"
    )
    options = parser.parse_args(arguments)
    # Nothing is computed: an accelerator stays with whoever uses it.
    jax.config.update("jax_platforms", "cpu")
    throughput = options.throughput and sweeps.read_throughput(Path(options.throughput))
    found = collect([Path(folder) for folder in options.workdir])
    if found.empty and not throughput:
        allowed = "a folder with results, such as `python eval.py --workdir=FOLDER` makes of a run"
        raise InputError("workdir", " ".join(options.workdir), allowed)
    folder = Path(options.to)
    make_folder(folder, "--to")
    for line in found.left_out:
        print(f"{Path(sys.argv[0]).name}: left out: {line}", file=sys.stderr)
    write(build(found, throughput or None), folder)
    print(f"{folder / 'report.html'}\n{folder / 'report.md'}")
    return 0


def build(found: Found, throughput: Mapping[str, Any] | None = None) -> Document:
    """The report; a section is there only if it has something to show.

    Args:
      found: the results.
      throughput: from `sweeps.read_throughput`, or None.
    """
    needles = tables.needle_table(found)
    harness = tables.harness_tables(found)
    sections: Sequence[Section | None] = [
        overview.in_short(found),
        overview.models(found),
        training.curves(found),
        training.text(found),
        training.recall(found),
        training.answers(found),
        training.gates(found),
        *[section for section in harness if section.anchor == "table1"],
        needles,
        *[section for section in harness if section.anchor != "table1"],
        *sweeps.sweep_sections(found.sweeps),
        sweeps.throughput_section(throughput) if throughput else None,
        missing.missing(found, throughput is not None),
        overview.left_out(found),
        overview.sources(found),
    ]
    there = [section for section in sections if section is not None]
    return Document("Memory caching: results", overview.lead(found), there)


def write(document: Document, folder: Path) -> None:
    """Write report.html, report.md and pictures/ into a folder that is there."""
    pictures = folder / "pictures"
    make_folder(pictures, "--to")
    for section in document.sections:
        for block in section.blocks:
            for picture in block.pictures if isinstance(block, Pictures) else ():
                replace(pictures / picture.name, picture.content)
    replace(folder / "report.md", markdown.render(document, pictures.name).encode())
    replace(folder / "report.html", page.render(document).encode())
