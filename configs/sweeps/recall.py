"""Recall with and without caching: configs/mqar.py by update rule and aggregation.

    python train.py sweep --sweep=configs/sweeps/recall.py
    python train.py sweep --sweep=configs/sweeps/recall.py --only rule=linear --seeds 0

The cells of an update rule differ in how memories are read and in nothing else: the model around
it, data, steps and learning rate are those of configs/mqar.py. The README has the recall of 64
pairs. A run takes two to three minutes on two cores (Titans five), all of them about an hour.
"""

from configs import mqar
from mc_jax.sweeps import Cell, Lines, Sweep

CELLS = {
    "linear": ("none", "residual", "grm", "soup", "ssc"),
    "titans": ("none", "grm"),
}


def get_sweep():
    cells = [
        Cell({"rule": rule, "aggregation": how}, mqar.get_config(f"{rule},{how}"))
        for rule, aggregations in CELLS.items()
        for how in aggregations
    ]
    picture = Lines(x="pairs", lines="aggregation", panels="rule")
    return Sweep(cells, (0, 1, 2), "accuracy", picture, by="pairs", title="Associative recall")
