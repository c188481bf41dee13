"""Texts longer than those of training: without caching, with it added afterwards, and fine-tuned.

    python -m benchmarks.extrapolation                # runs in runs/extrapolation
    python -m benchmarks.extrapolation --rules linear dla
    python -m benchmarks.extrapolation --report       # table and picture of what is finished

A model of configs/default.py is trained without caching on 256 tokens at a time. It then reads
texts of 256 to 4,096 tokens: as it is; with post-training caching, whose weights fall by a factor
with each segment back; and with a gate of GRM, after configs/finetune_gate.py has trained that
alone. All are measured on all of the held-out text. Finished runs are not run again.
"""

import argparse
import json
from pathlib import Path

import jax
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from benchmarks import common
from configs import default, finetune_gate
from mc_jax.evaluation.run import evaluate
from mc_jax.files import replace
from mc_jax.training import train

PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain")
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "extrapolation.png"
LENGTHS = (256, 512, 1024, 2048, 4096)
WAYS = (
    "no caching",
    "post-training, 0.5",
    "post-training, 0.1",
    "fine-tuned gate: context",
    "fine-tuned gate: position",
)
COLOURS = dict(zip(WAYS, ("0.45", "tab:blue", "tab:cyan", "tab:red", "tab:orange"), strict=True))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rules", nargs="+", default=["linear"], help="linear swla dla titans")
    parser.add_argument("--workdir", type=Path, default=Path("runs/extrapolation"))
    parser.add_argument("--report", action="store_true", help="train and measure nothing")
    return parser.parse_args()


def trained(root: Path, rule: str) -> dict[str, Path]:
    """The workdirs of finished runs: of the model without caching, and of each gate."""
    config = default.get_config()
    config.model.memory.update(rule=rule, aggregation="none", segment_len=LENGTHS[0])
    workdirs = {"plain": root / f"{rule}-plain"}
    finish(config, workdirs["plain"])
    for gate in ("context", "position"):
        workdirs[gate] = root / f"{rule}-{gate}"
        finish(finetune_gate.get_config(f"{workdirs['plain']},grm,{gate}"), workdirs[gate])
    return workdirs


def finish(config: ConfigDict, workdir: Path) -> None:
    """Train to the end."""
    config.train.tensorboard = False
    if train(config.lock(), workdir).signal:
        raise SystemExit(f"stopped in {workdir}; the same command goes on from there")


def measure(root: Path, rule: str) -> list[dict]:
    """A row for each way and length."""
    workdirs, rows = trained(root, rule), []
    for way in WAYS:
        workdir = workdirs[way.split(": ")[1] if ":" in way else "plain"]
        decay = float(way.split(", ")[1]) if "," in way else None
        for length in LENGTHS:
            # More batches than there are: all of them.
            found = evaluate(workdir, "latest", 10**6, length, decay)["held_out"]
            rows.append({"rule": rule, "way": way, "length": length, **found})
            print(f"{rule}, {way}, {length} tokens: {found['bits_per_byte']:.3f} bits per byte")
    return rows


def finished(root: Path) -> list[dict]:
    """All rows measured so far."""
    return [row for path in sorted(root.glob("*.json")) for row in json.loads(path.read_text())]


def markdown(rows: list[dict]) -> str:
    """Bits per byte by way and length."""
    lines = [["rule", "caching", *(f"{length:,} tokens" for length in LENGTHS)]]
    lines.append(["---"] * len(lines[0]))
    for rule, way in dict.fromkeys((row["rule"], row["way"]) for row in rows):
        found = [row for row in rows if (row["rule"], row["way"]) == (rule, way)]
        lines.append([rule, way, *(f"{row['bits_per_byte']:.3f}" for row in found)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(rows: list[dict]) -> None:
    """Loss by length of the text, and by position in the longest ones; a row for each rule."""
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    figure = Figure(figsize=(9, 3.6 * len(rules)), layout="constrained")
    panels = figure.subplots(len(rules), 2, squeeze=False)
    for rule, (by_length, by_position) in zip(rules, panels, strict=True):
        for way in WAYS:
            found = [row for row in rows if (row["rule"], row["way"]) == (rule, way)]
            style = {"marker": "o", "markersize": 4, "color": COLOURS[way], "label": way}
            bits = [row["bits_per_byte"] for row in found]
            by_length.plot([row["length"] for row in found], bits, **style)
            octaves = [row for row in found[-1]["by_position"] if row["first"] >= 32]
            middle = [(row["first"] * (row["last"] + 1)) ** 0.5 for row in octaves]
            by_position.plot(middle, [row["bits_per_byte"] for row in octaves], **style)
        by_length.set(title=f"{rule}: by length of the text", xlabel="tokens of a text")
        by_position.set(
            title=f"{rule}: by position, texts of {LENGTHS[-1]:,} tokens", xlabel="position"
        )
        by_position.axvline(LENGTHS[0], color="0.6", linestyle=":", linewidth=1)
        for axis in (by_length, by_position):
            axis.set_xscale("log", base=2)
            axis.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
            axis.minorticks_off()
            axis.set_ylabel("bits per byte")
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", alpha=0.3)
        by_length.legend(frameon=False, fontsize=8)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=150)


def main() -> None:
    args = arguments()
    for rule in [] if args.report else args.rules:
        path = args.workdir / f"{rule}.json"
        if not path.exists():
            rows = measure(args.workdir, rule)
            replace(path, json.dumps(rows).encode())
    rows = finished(args.workdir)
    if not rows:
        print(f"nothing in {args.workdir} is finished")
        return
    print("\n" + markdown(rows) + "\n")
    settings = {"accelerator": jax.devices()[0].device_kind}
    whole = any(row["rule"] == "linear" for row in rows)
    if whole:
        draw(rows)
    common.write_results("extrapolation" if whole else None, PACKAGES, settings, rows)


if __name__ == "__main__":
    main()
