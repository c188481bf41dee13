"""What the benchmarks share: threads, timing, tables and results. Imports no JAX by itself."""

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Options that do not change what is measured: how often, on how many cores, where it is kept.
HOW = ("rounds", "budget_s", "calls", "threads", "workdir", "name", "report")


def parse(parser: argparse.ArgumentParser, *varied: str) -> argparse.Namespace:
    """The options, and as `whole` whether a run with them is the whole benchmark.

    Args:
      parser: of the options.
      varied: those that results of their own are kept for; all others, but `HOW`, are then as by
        default.
    """
    options = parser.parse_args()
    fixed = [name for name in vars(options) if name not in (*HOW, *varied)]
    options.whole = all(getattr(options, name) == parser.get_default(name) for name in fixed)
    return options


def folder_of_this_code(folder: pathlib.Path, packages: Sequence[str]) -> pathlib.Path:
    """A folder inside for what this code has measured, with these packages; others have their own.

    Args:
      folder: of results that a run can go on from.
      packages: whose versions count.
    """
    digest = hashlib.sha256()
    for file in sorted(
        path for part in ("mc_jax", "configs", "benchmarks") for path in (ROOT / part).rglob("*.py")
    ):
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    digest.update(str([importlib.metadata.version(package) for package in packages]).encode())
    inside = folder / digest.hexdigest()[:12]
    inside.mkdir(parents=True, exist_ok=True)
    return inside


def use_threads(threads: int) -> None:
    """Hold this process to `threads` cores; call it before JAX or PyTorch is imported.

    XLA has no setting for its number of threads but starts one for each core that it may use.
    PyTorch's OpenMP threads would keep their cores busy after each operation and so slow down
    whoever runs next: passive waiting stops that. The allocator is set, for whatever runs in this
    process, as train.py sets it, for which the process starts again.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from mc_jax.allocator import keep_freed_memory, restart_with_huge_pages

    restart_with_huge_pages()
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(cores):
        raise SystemExit(f"--threads: found {threads}, allowed: 1 to {len(cores)} on this machine")
    os.sched_setaffinity(0, cores[:threads])
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ["OMP_NUM_THREADS"] = str(threads)
    keep_freed_memory()


def check_lengths(lengths: Sequence[int], tokens: int) -> None:
    """Stop unless a call's tokens are whole sequences of each length."""
    uneven = [n for n in lengths if tokens % n]
    if uneven:
        raise SystemExit(f"--lengths: found {uneven}, allowed: divisors of --tokens {tokens}")


def seconds(run: Callable[[], Any]) -> float:
    """Wall-clock time of one call; `run` returns when its work is done."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleave(
    runs: Sequence[Callable[[], Any]], calls: Sequence[int], rounds: int, budget_s: float
) -> list[list[float]]:
    """Times of several rivals, measured in turns so that a busy moment hits all of them.

    Args:
      runs: what to time.
      calls: timed calls of each in one round, after an untimed one where there are several.
      rounds: most rounds.
      budget_s: no round after the second starts once this much time is used.

    Returns:
      For each of `runs` the seconds of every timed call.
    """
    times: list[list[float]] = [[] for _ in runs]
    start = time.perf_counter()
    for done in range(rounds):
        if done >= 2 and time.perf_counter() - start > budget_s:
            break
        for run, count, found in zip(runs, calls, times, strict=True):
            if count > 1:
                run()
            found.extend(seconds(run) for _ in range(count))
    return times


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median, extremes and number of measured seconds."""
    return {
        "median_s": statistics.median(times),
        "min_s": min(times),
        "max_s": max(times),
        "calls": len(times),
    }


def device_name() -> str:
    """The accelerator that JAX runs on, else the processor and its cores that may be used."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def write_results(
    name: str | None,
    packages: Sequence[str],
    settings: Any,
    rows: list[dict],
    unfinished: bool = False,
) -> None:
    """Write `results/<name>.json` with the date, the device and the packages' versions.

    Args:
      name: of the file; None for a part of the benchmark, which would replace the whole's results.
      packages: whose versions are written.
      settings: of the run.
      rows: what was measured.
      unfinished: write what there is to `<name>_unfinished.json`, which the last call removes: a
        run that breaks off replaces no results either.
    """
    if name is None:
        if not unfinished:
            print("results are not written: this was a part of the benchmark")
        return
    RESULTS.mkdir(exist_ok=True)
    record = {
        "date": datetime.date.today().isoformat(),
        "device": device_name(),
        "load_average": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        "settings": {k: v for k, v in settings.items() if k != "whole"},
        "rows": rows,
    }
    aside, path = (RESULTS / f"{name}{end}.json" for end in ("_unfinished", ""))
    (aside if unfinished else path).write_text(json.dumps(record, indent=2) + "\n")
    if not unfinished:
        aside.unlink(missing_ok=True)
        print(f"written: {path.relative_to(ROOT)}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns padded to their widest entry."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(x.rjust(width) for x, width in zip(row, widths, strict=True)))
