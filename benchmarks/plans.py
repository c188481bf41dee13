"""What the paper's models need on TPU pods, from the compiler: the tables of docs/scale.md.

    python -m benchmarks.plans                # everything, about an hour and a half on two cores
    python -m benchmarks.plans context        # one of paper, context, scaling

Compiles whole training steps for topologies that are not here (`train.py plan`); a plan that the
same code has made is not made again. Results: benchmarks/results/plans.json.
"""

import argparse
import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import common

PACKAGES = ("jax", "jaxlib", "libtpu", "flax")
GROUPS = ("paper", "context", "scaling")
MILLION = 2**20
DOCUMENT = common.ROOT / "docs" / "scale.md"
HEADER = (
    "| model | chips | length | state + temporaries, GiB | all | free | compute, s | network, s |"
)
TITLES = {
    "paper": "The paper's models, 524,288 tokens a step (at 16,384 two devices share a sequence):",
    "context": "One sequence, 1.3B with 16 heads of 128, all chips sharing it, memories in a ring:",
    "scaling": "Two sequences of 4,096 for each chip, parameters over all of them or over 16 each:",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One plan.

    Attributes:
      group: of which table.
      config: file and argument.
      topology: the devices.
      changes: of the config, by "group.key".
    """

    group: str
    config: str
    topology: str
    changes: dict[str, Any]

    @property
    def name(self) -> str:
        """Unique."""
        changes = " ".join(f"{key}={value}" for key, value in self.changes.items())
        return f"{self.config} {self.topology} {changes}".strip()


def cases() -> list[Case]:
    """All plans."""
    found = []
    # 0.5M tokens a step.
    for size, rule, aggregation, length in itertools.product(
        ("1b3", "760m"), ("linear", "swla", "dla", "titans"), ("grm", "ssc"), (4096, 16384)
    ):
        changes: dict[str, Any] = {}
        if length > 4096:
            rows = 2**19 // length
            changes = {"data.length": length, "data.batch_size": rows, "mesh.context": 2}
        config = f"configs/paper_{size}.py:{rule},{aggregation}"
        found.append(Case("paper", config, "v5p:4x4x4", changes))
    for topology, length in (
        *(("v5p:2x2x4", n * MILLION) for n in (1, 2, 4)),
        *(("v5p:4x4x4", n * MILLION) for n in (1, 4, 8)),
        ("v5e:8x8", MILLION),
    ):
        changes = {
            "data.length": length,
            "data.batch_size": 1,
            "mesh.fsdp": 1,
            "mesh.context": -1,
            "model.num_heads": 16,  # of 128
            "model.memory.exchange": "ring",
            "model.memory.placement": "zigzag",
        }
        found.append(Case("context", "configs/paper_1b3.py:linear,grm", topology, changes))
    for mesh, (topology, chips) in itertools.product(
        ({}, {"mesh.data": -1, "mesh.fsdp": 16}),
        (("v5p:2x2x4", 16), ("v5p:4x4x4", 64), ("v5p:8x8x8", 512)),
    ):
        # Two sequences of 4,096 a chip.
        changes = {"data.batch_size": 2 * chips, **mesh}
        found.append(Case("scaling", "configs/paper_1b3.py:titans,grm", topology, changes))
    return found


def make(case: Case) -> dict[str, Any]:
    """The plan of a case, or why there is none."""
    from mc_jax.errors import InputError
    from mc_jax.planning import plan
    from mc_jax.training.cli import read_config
    from mc_jax.training.experiment import check

    changes = dict(case.changes)
    if "data.batch_size" in changes:
        changes["data.eval_batch_size"] = changes["data.batch_size"]
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    row: dict[str, Any] = {"name": case.name, **dataclasses.asdict(case)}
    try:
        experiment = check(read_config(case.config, overrides), read_data=False)
        return row | {"plan": plan(experiment, case.topology).to_json()}
    except InputError as error:
        return row | {"error": str(error)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="|".join(GROUPS), help="all by default")
    parser.add_argument("--workdir", type=Path, default=Path("runs/plans"))
    options = parser.parse_args()
    unknown = set(options.groups) - set(GROUPS)
    if unknown:
        parser.error(f"found {', '.join(unknown)}; allowed: {', '.join(GROUPS)}")
    workdir = common.folder_of_this_code(options.workdir, PACKAGES)
    rows = []
    bar = tqdm([case for case in cases() if not options.groups or case.group in options.groups])
    for case in bar:
        bar.set_description(case.name)
        file = workdir / (re.sub(r"[^\w.,=]+", "-", case.name) + ".json")
        if not file.exists():
            file.write_text(json.dumps(make(case)))
        rows.append(json.loads(file.read_text()))
        bar.write(summary(rows[-1]))
    if not options.groups:
        common.write_results("plans", PACKAGES, {}, rows)
        write_tables(rows)


def write_tables(rows: list[dict[str, Any]]) -> None:
    """Replace the tables of docs/scale.md."""
    begin, end = "<!-- plans: python -m benchmarks.plans -->\n", "<!-- end of plans -->"
    text = DOCUMENT.read_text()
    before, after = text.split(begin)[0], text.split(end)[1]
    DOCUMENT.write_text(before + begin + "\n".join(tables(rows)) + "\n" + end + after)


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown."""
    found = []
    for group, title in TITLES.items():
        those = [row for row in rows if row["group"] == group]
        if not those:
            continue
        found += ["", title, "", HEADER, "|---|---|---|---|---|---|---|---|"]
        found += [_line(row) for row in those]
    return found


def _line(row: dict[str, Any]) -> str:
    name = row["config"].removeprefix("configs/paper_").replace(".py:", " ")
    changes, gib = row["changes"], 2**30
    length = changes.get("data.length", 4096)
    if "mesh.fsdp" in changes and changes["mesh.fsdp"] > 1:
        name += f", fsdp={changes['mesh.fsdp']}"
    if "error" in row:
        return f"| {name} | {row['topology']} | {length:,} | {row['error']} | | | | |"
    plan = row["plan"]
    memory, seconds = plan["memory"], plan["seconds"]
    free = f"{plan['free']:.0%}" if plan["fits"] else "does not fit"
    if "temporaries" not in memory:
        parts, times = "", ["", ""]
    else:
        state = (memory["parameters"] + memory["optimizer"]) / gib
        parts = f"{state:.2f} + {memory['temporaries'] / gib:.2f}"
        times = [f"{seconds[name]:.2f}" for name in ("compute", "network")]
    total = f"{memory['total'] / gib:.1f}"
    cells = [name, row["topology"], f"{length:,}", parts, total, free, *times]
    return f"| {' | '.join(cells)} |"


def summary(row: dict[str, Any]) -> str:
    """One line."""
    if "error" in row:
        return f"{row['name']}: {row['error']}"
    plan, gib = row["plan"], 2**30
    memory = plan["memory"]
    parts = [f"{name} {size / gib:.2f}" for name, size in memory.items()]
    return f"{row['name']}: GiB {', '.join(parts)} of {plan['hbm'] / gib:.1f}"


if __name__ == "__main__":
    main()
