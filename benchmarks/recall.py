"""Recall with and without caching: configs/mqar.py by update rule, aggregation and seed.

    python -m benchmarks.recall                              # every cell, three seeds
    python -m benchmarks.recall --cells linear,none linear,grm --seeds 0

The cells of an update rule differ in how memories are read and in nothing else: the model around
it, data, steps and learning rate are those of configs/mqar.py. Each run is trained as train.py does
and evaluated as eval.py does. Ctrl-C saves the run; the same command goes on from there and skips
what is finished. After each run the Markdown table, results/recall.json and docs/images/recall.png
are made anew from all finished runs of the folder, those of other cells and seeds among them.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

from benchmarks import common
from configs import mqar
from mc_jax.evaluation import evaluate
from mc_jax.training import check, train

CELLS = {
    "linear": ("none", "residual", "grm", "soup", "ssc"),
    "titans": ("none", "grm"),
}
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "recall.png"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
COLOURS = {"none": "#8a8a8a", "grm": "#c2452d"}
OTHER_COLOUR = "#3f6c8f"

Row = dict[str, Any]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cells = [f"{rule},{how}" for rule, hows in CELLS.items() for how in hows]
    parser.add_argument(
        "--cells", nargs="+", choices=cells, metavar="RULE,AGGREGATION", default=cells
    )
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", default=[0, 1, 2])
    parser.add_argument("--workdir", type=Path, default=Path("runs/recall"), metavar="FOLDER")
    parser.add_argument("--report", action="store_true", help="train nothing, only report")
    return parser.parse_args()


class Run:
    """One training run of the benchmark, finished or not."""

    def __init__(self, root: Path, cell: str, seed: int):
        self.cell, self.seed = cell, seed
        self.workdir = root / f"{cell.replace(',', '-')}-{seed}"
        self.config = mqar.get_config(cell)
        self.config.seed = seed

    @property
    def _evaluation(self) -> Path:
        return self.workdir / "eval" / f"step_{self.config.train.steps}.json"

    @property
    def finished(self) -> bool:
        """Whether it is trained to the end, evaluated, and one of the present configs/mqar.py."""
        saved = self.workdir / "config.json"
        if not (saved.exists() and self._evaluation.exists()):
            return False
        return json.loads(saved.read_text()) == check(self.config).to_json()

    def finish(self) -> bool:
        """Train to the end and evaluate; False if a signal came before the end."""
        if train(self.config, self.workdir).signal:
            return False
        evaluate(self.workdir)
        return True

    def result(self) -> Row:
        """What is recorded of a finished run."""
        held_out = json.loads(self._evaluation.read_text())["held_out"]
        lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
        speed = statistics.median(json.loads(line)["tokens_per_second"] for line in lines)
        tokens = self.config.data.batch_size * self.config.data.length
        return {
            "seed": self.seed,
            "recall": {str(row["pairs"]): row["accuracy"] for row in held_out["by_pairs"]},
            "step_s": tokens / speed,
        }


def finished_runs(root: Path) -> list[Row]:
    """The cells with a finished run, in the order of CELLS, with all their runs' results."""
    rows = []
    for rule, hows in CELLS.items():
        for how in hows:
            cell = f"{rule},{how}"
            seeds = sorted(int(path.name.split("-")[-1]) for path in root.glob(f"{rule}-{how}-*"))
            runs = [run for seed in seeds if (run := Run(root, cell, seed)).finished]
            if runs:
                results = [run.result() for run in runs]
                rows.append({"rule": rule, "aggregation": how, "runs": results})
    return rows


def recalls(row: Row, pairs: str) -> list[float]:
    """Recall of every seed of a cell at a number of pairs."""
    return [run["recall"][pairs] for run in row["runs"]]


def markdown(rows: Sequence[Row], pairs: Sequence[str]) -> str:
    """The table: mean over the seeds, and the lowest and highest for the most pairs."""
    most = pairs[-1]
    header = ["rule", "caching", f"recall, {most} pairs", "lowest .. highest", "seeds"]
    header += [f"{n} pairs" for n in reversed(pairs[:-1])] + ["s a step"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        found = recalls(row, most)
        entries = [row["rule"], row["aggregation"], f"{statistics.fmean(found):.2f}"]
        entries += [f"{min(found):.2f} .. {max(found):.2f}", str(len(found))]
        entries += [f"{statistics.fmean(recalls(row, n)):.2f}" for n in reversed(pairs[:-1])]
        entries += [f"{statistics.median(run['step_s'] for run in row['runs']):.2f}"]
        lines.append(entries)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(rows: Sequence[Row], pairs: str) -> None:
    """A bar for each cell, as high as the mean, and a dot for each seed."""
    figure = Figure(figsize=(max(5.0, 1.6 + 0.95 * len(rows)), 3.8), layout="constrained")
    axis = figure.subplots()
    names, place, previous = {}, 0.0, None
    for row in rows:
        place += 1.0 if row["rule"] == previous else 1.6
        previous = row["rule"]
        found = recalls(row, pairs)
        mean = statistics.fmean(found)
        colour = COLOURS.get(row["aggregation"], OTHER_COLOUR)
        axis.bar(place, mean, width=0.72, color=colour)
        axis.plot([place] * len(found), found, "o", color="black", markersize=3.5, alpha=0.7)
        axis.annotate(
            f"{mean:.2f}",
            (place, max(found)),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
        )
        names[place] = f"{'no caching' if row['aggregation'] == 'none' else row['aggregation']}"
        names[place] += f"\n{row['rule']}"
    axis.set_xticks(list(names), list(names.values()))
    axis.set_ylim(0, 1.09)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axis.set_ylabel(f"recall of {pairs} key-value pairs")
    axis.set_title("Associative recall: bars are means, dots are seeds", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=150)


def write_report(root: Path) -> None:
    """Print the table and write the results and the picture, of all that is finished."""
    rows = finished_runs(root)
    if not rows:
        print(f"no run in {root} is finished")
        return
    config = mqar.get_config()
    pairs = [str(n) for n in sorted(config.data.mqar.eval_pairs)]
    print("\n" + markdown(rows, pairs) + "\n")
    draw(rows, pairs[-1])
    settings = {"accelerator": jax.devices()[0].device_kind, "config": check(config).to_json()}
    common.write_results("recall", PACKAGES, settings, rows)


def main() -> None:
    args = arguments()
    # Seeds outermost: the picture is whole after the first of them.
    runs = [Run(args.workdir, cell, seed) for seed in args.seeds for cell in args.cells]
    unfinished = [] if args.report else [run for run in runs if not run.finished]
    for run in unfinished:
        if not run.finish():
            raise SystemExit(f"stopped in {run.workdir}; the same command goes on from there")
        write_report(args.workdir)
    if not unfinished:
        write_report(args.workdir)


if __name__ == "__main__":
    main()
