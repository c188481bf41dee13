"""Block sizes of a kernel, compared by static time for a TPU that need not be here.

    python -m benchmarks.tune "linear_read grm forward" --chip v5e
    python -m benchmarks.tune "deep_write titans forward" --chip v6e --blocks heads=1,2,4 span=1,4

Every combination of the sizes is compiled; the others are those of the heuristic, which is the
first line. Printed and written to results/ is the table, fastest first. What static time leaves out
is said in benchmarks/README.md. A configuration that is better can be passed as `config` to the op.
"""

import argparse
import itertools
import math

from tqdm import tqdm

from benchmarks import common
from benchmarks.tpu_kernels import KERNELS
from benchmarks.tpu_static import CHIPS, PACKAGES, CompileError, measure

# What is tried by default, by the first word of a kernel's name.
CANDIDATES: dict[str, dict[str, tuple[int, ...]]] = {
    "linear_read": {"tokens": (256, 512, 1024), "group": (4, 8, 16)},
    "linear_write": {"heads": (1, 2, 4, 8), "tokens": (64, 128, 256)},
    "deep_read": {"tokens": (256, 512, 1024), "group": (1, 2, 4)},
    "deep_write": {"heads": (1, 2, 4, 8), "span": (1, 2, 4)},
}
NAMES = [name for name in KERNELS if name.split()[0] in CANDIDATES]


def sizes_of(text: str) -> tuple[str, tuple[int, ...]]:
    """`tokens=256,512` as a name and its sizes."""
    name, equals, values = text.partition("=")
    try:
        sizes = tuple(int(value) for value in values.split(","))
    except ValueError:
        sizes = ()
    if not (name and equals and sizes):
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed: NAME=SIZE,SIZE,...")
    return name, sizes


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kernel", choices=NAMES, metavar="KERNEL", help=" | ".join(NAMES))
    parser.add_argument("--chip", choices=CHIPS, default="v5e")
    parser.add_argument("--blocks", nargs="+", type=sizes_of, metavar="NAME=SIZE,...")
    return parser.parse_args()


def attempt(kernel: str, chip: str, blocks: dict[str, int]) -> dict:
    """A row of the table: static time and peak, or why the compiler refuses these sizes."""
    try:
        row = measure(kernel, chip, blocks)
    except CompileError as error:
        reason = str(error).strip().splitlines()[-1]
        return {"blocks": blocks, "static_ms": math.inf, "refused": reason}
    return {"blocks": blocks} | {key: row[key] for key in ("static_ms", "percent_of_peak")}


def main() -> None:
    args = arguments()
    candidates: dict[str, tuple[int, ...]]
    candidates = dict(args.blocks) if args.blocks else CANDIDATES[args.kernel.split()[0]]
    names = list(candidates)
    combinations = [
        dict(zip(names, sizes, strict=True)) for sizes in itertools.product(*candidates.values())
    ]
    heuristic = attempt(args.kernel, args.chip, {})
    rows = [attempt(args.kernel, args.chip, blocks) for blocks in tqdm(combinations)]
    rows.sort(key=lambda row: row["static_ms"])

    def line(name: str, row: dict) -> tuple[str, ...]:
        if "refused" in row:
            return name, "refused", row["refused"][:80]
        ratio = row["static_ms"] / heuristic["static_ms"]
        return name, f"{row['static_ms']:.3f} ({ratio:.2f})", f"{row['percent_of_peak']:.0f}"

    lines = [line("heuristic", heuristic)]
    lines += [line(" ".join(f"{k}={v}" for k, v in r["blocks"].items()), r) for r in rows]
    print(f"\n{args.kernel}, {args.chip}")
    common.print_table(("blocks", "static ms (over the heuristic's)", "% of peak"), lines)
    name = f"tune_{args.kernel.replace(',', '').replace(' ', '_')}_{args.chip}"
    finite = [row for row in rows if "refused" not in row]
    settings = {"kernel": args.kernel, "chip": args.chip, "heuristic_ms": heuristic["static_ms"]}
    common.write_results(name, PACKAGES, settings, finite)


if __name__ == "__main__":
    main()
