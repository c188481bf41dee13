"""The memory layer beside that of an earlier revision, on the CPU: what became faster or slower.

    python -m benchmarks.vs_revision fa2aecc        # the first version
    python -m benchmarks.vs_revision HEAD           # what has not been committed

Forward and backward of one layer in float32, gradients with respect to the input and to all
parameters, for every update rule and aggregation. Each revision runs in a process of its own, on
the same cores, in turns, with the memory allocator as its own train.py sets it, and the earlier one
with the working tree's setting besides. Printed are medians and their ratios, above 1 where the
working tree is faster. The shape is that of `vs_peers`; with wider layers the projections, which no
revision changes, take most of the time.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import common, one_layer

RULES = ("linear", "swla", "dla", "titans")
AGGREGATIONS = ("none", "residual", "grm", "soup", "ssc")
ROOT = Path(__file__).resolve().parent.parent
# What mc_jax/allocator.py does, for revisions that do not have it.
ALLOCATOR = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0"
    ":glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864"
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("revision", help="of git, to compare with")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument(
        "--aggregations", nargs="+", choices=AGGREGATIONS, default=list(AGGREGATIONS)
    )
    one_layer.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--calls", type=int, default=5, help="timed calls of each in a turn")
    return common.parse(parser, "revision")


class Worker:
    """One revision's layer in a process of its own; `tunables` of glibc, None for its own."""

    def __init__(self, tree: Path, settings: dict, tunables: str | None = None):
        environment = os.environ | {"PYTHONPATH": str(tree)}
        environment.pop("GLIBC_TUNABLES", None)
        if tunables:
            environment["GLIBC_TUNABLES"] = tunables
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "one_layer.py")],
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._ask(json.dumps(settings))

    def times(self, calls: int) -> list[float]:
        """Seconds of each call."""
        return json.loads(self._ask(str(calls)))

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, line: str) -> str:
        assert self._process.stdin and self._process.stdout
        try:
            print(line, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            _, errors = self._process.communicate()
            raise SystemExit(f"the layer's process failed:\n{errors[-2000:]}")
        return answer


def compare(args: argparse.Namespace, earlier: Path, rule: str, aggregation: str) -> dict:
    """Times of both revisions for one cell."""
    settings = one_layer.settings_of(args, rule, aggregation)
    workers = [
        Worker(ROOT, settings),
        Worker(earlier, settings),
        Worker(earlier, settings, ALLOCATOR),
    ]
    times: list[list[float]] = [[] for _ in workers]
    for _ in range(args.rounds):
        for worker, found in zip(workers, times, strict=True):
            found += worker.times(args.calls)
    for worker in workers:
        worker.close()
    ours, theirs, alike = (common.spread(found) for found in times)
    return {
        "rule": rule,
        "aggregation": aggregation,
        "ours": ours,
        "earlier": theirs,
        "earlier_our_allocator": alike,
        "ratio": theirs["median_s"] / ours["median_s"],
        "ratio_same_allocator": alike["median_s"] / ours["median_s"],
    }


def main() -> None:
    args = arguments()
    common.use_threads(args.threads)
    git = ["git", "-C", str(ROOT)]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        added = [*git, "worktree", "add", "--detach", str(tree), args.revision]
        if subprocess.run(added, capture_output=True, check=False).returncode:
            raise SystemExit(f"revision: found {args.revision!r}, allowed: one that git knows")
        rows = []
        try:
            for rule in args.rules:
                for aggregation in args.aggregations:
                    row = compare(args, tree, rule, aggregation)
                    rows.append(row)
                    print(
                        f"{rule:7} {aggregation:9} {1e3 * row['ours']['median_s']:8.1f} ms, earlier"
                        f" {1e3 * row['earlier']['median_s']:8.1f} ms: {row['ratio']:.2f} times;"
                        f" with our allocator {row['ratio_same_allocator']:.2f}",
                        flush=True,
                    )
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)
    for kind, what in (("ratio", "each its own"), ("ratio_same_allocator", "the same")):
        ratios = [row[kind] for row in rows]
        mean = math.exp(statistics.fmean(math.log(r) for r in ratios))
        print(f"allocator {what}: geometric mean {mean:.2f} times, least {min(ratios):.2f}")
    print(common.device_name())
    describe = [*git, "rev-parse", "--short", args.revision]
    commit = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    settings = vars(args) | {"revision": commit}
    name = f"vs_revision_{commit}" if args.whole else None
    common.write_results(name, ("jax", "jaxlib", "flax"), settings, rows)


if __name__ == "__main__":
    main()
