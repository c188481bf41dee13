"""The command `eval.py suite`: every evaluation that needs no network, and the report."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mc_jax.errors import InputError
from mc_jax.evaluation import results
from mc_jax.evaluation.needles import needles_command
from mc_jax.evaluation.report import report_command
from mc_jax.evaluation.run import evaluate
from mc_jax.evaluation.summary import summary
from mc_jax.training import Saved, load
from mc_jax.training.cli import Parser

SUITE = """Evaluate runs on what needs no network, and write the report.

  python eval.py suite --workdir runs/default runs/mqar
      held-out data; for text also needles in a haystack; then the report of all runs in report/

  python eval.py suite --workdir runs/default --tasks=my_task --include_path=my_tasks
      the same, and tasks of the LM evaluation harness whose data are here

The newest checkpoint of each run. What is done already, with the same checkpoint and settings, is
not done again: a suite that was stopped or killed goes on where it was. `eval.py COMMAND --help`
tells more of each part: needles, harness, report.
"""


class Part(NamedTuple):
    """One evaluation of one run.

    Attributes:
      title: what the terminal shows.
      run: does it.
    """

    title: str
    run: Callable[[], object]


def suite_command(arguments: list[str]) -> int:
    """Run `eval.py suite`; returns the exit code."""
    parser = Parser(SUITE)
    parser.add_argument("--workdir", metavar="FOLDER", nargs="+", required=True, help="the runs'")
    parser.add_argument("--to", metavar="FOLDER", default="report", help="the report's folder")
    needles = parser.add_argument_group("needles in a haystack")
    needles.add_argument(
        "--lengths", type=int, nargs="+", metavar="N", default=[1024, 2048], help="in tokens"
    )
    needles.add_argument("--samples", type=int, metavar="N", default=20, help="of each; default 20")
    harness = parser.add_argument_group("the LM evaluation harness, with --tasks")
    harness.add_argument("--tasks", metavar="NAMES", help="with commas between")
    harness.add_argument("--include_path", metavar="FOLDER", help="with task files of your own")
    harness.add_argument("--data_dir", metavar="FOLDER", help="with data sets")
    harness.add_argument("--max_length", metavar="N", help="longest context in tokens")
    harness.add_argument("--limit", metavar="N", help="first documents of each task")
    options = parser.parse_args(arguments)
    passed_on = [
        f"--{name}={value}"
        for name in ("tasks", "include_path", "data_dir", "max_length", "limit")
        if (value := getattr(options, name)) is not None
    ]
    if passed_on and not options.tasks:
        raise InputError("--tasks", None, f"tasks of the harness, for {' '.join(passed_on)}")
    lengths = [str(length) for length in options.lengths]
    for_needles = ["--lengths", *lengths, "--samples", str(options.samples)]
    parts = [
        part for folder in options.workdir for part in _parts(Path(folder), for_needles, passed_on)
    ]
    report = ["--workdir", *options.workdir, "--to", options.to]
    parts.append(Part("report", lambda: report_command(report)))
    for number, part in enumerate(parts, 1):
        print(f"\n[{number}/{len(parts)}] {part.title}", flush=True)
        part.run()
    return 0


def _parts(workdir: Path, for_needles: Sequence[str], for_harness: Sequence[str]) -> list[Part]:
    """The evaluations of one run.

    Raises:
      InputError: no run, or one without a checkpoint.
    """
    saved = load(workdir, "latest", weights=False)
    config = saved.config.data
    parts = [Part(f"{workdir}: held-out data", lambda: _held_out(workdir, saved))]
    if config.task == "text":
        needles = ["--workdir", str(workdir), *for_needles]
        parts.append(Part(f"{workdir}: needles", lambda: needles_command(needles)))
        if for_harness:
            harness = ["--workdir", str(workdir), *for_harness]
            parts.append(Part(f"{workdir}: harness", lambda: _harness(harness)))
    return parts


def _held_out(workdir: Path, saved: Saved) -> None:
    """`eval.py --workdir=...`, unless that has been done."""
    folder = workdir / "eval"
    there = results.find([folder]) if folder.is_dir() else []
    path = folder / f"step_{saved.step}.json"
    done = [result.content for result in there if result.path == path]
    if done and done[0]["length"] == saved.config.data.length:
        print(f"done already: {path}")
    else:
        done = [evaluate(workdir, saved.step)]
    print(summary(done[0]))


def _harness(arguments: list[str]) -> None:
    # lm-eval is installed by those who want it, and takes a while to import.
    from mc_jax.evaluation.harness.cli import harness_command

    harness_command(arguments)
