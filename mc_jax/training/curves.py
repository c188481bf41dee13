"""A picture of a run: train and held-out loss, and the learning rate."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from mc_jax.files import replace
from mc_jax.training.metrics import read

_TRAIN, _HELD_OUT = "#7aa6c2", "#c2452d"


def draw(workdir: Path) -> None:
    """Draw workdir/curves.png from workdir/metrics.jsonl."""
    records = read(workdir / "metrics.jsonl")
    held_out = [record for record in records if "held_out_loss" in record]
    text = "bits_per_byte" in records[-1]
    name, label = ("bits_per_byte", "bits per byte") if text else ("accuracy", "accuracy")
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, key in zip(axes, ("loss", name), strict=False):
        axis.plot(*_series(records, key), color=_TRAIN, linewidth=1, label="train")
        if held_out:
            series = _series(held_out, f"held_out_{key}")
            axis.plot(*series, color=_HELD_OUT, marker="o", markersize=3, label="held-out")
    axes[0].set_ylabel("loss (nats per token)")
    axes[0].legend(frameon=False)
    axes[1].set_ylabel(label)
    axes[2].plot(*_series(records, "lr"), color="#555555", linewidth=1)
    axes[2].set_ylabel("learning rate")
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    replace(workdir / "curves.png", picture.getvalue())


def _series(records: list[dict], key: str) -> tuple[list[float], list[float]]:
    return [record["step"] for record in records], [record[key] for record in records]
