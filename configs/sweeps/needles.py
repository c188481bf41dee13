"""Needle in a haystack (S-NIAH-1) on haystacks up to four times as long as those trained on.

    python train.py sweep --sweep=configs/sweeps/needles.py
    python train.py sweep --sweep=configs/sweeps/needles.py --only rule=linear

A cell is configs/needles.py with another update rule, or memories that are read in another way.
Every run is evaluated at each of the lengths; the number is the share of answers that are right to
the last token, each predicted from the right ones before it. A run takes one to three minutes
on one core, all 72 about two hours and a half.
"""

from configs import needles
from configs.reads import READS
from mc_jax.sweeps import Lines, Sweep, grid


def config_of(rule, read):
    aggregation, segmentation = READS[read]
    config = needles.get_config(f"{rule},{aggregation}")
    config.model.memory.segmentation = segmentation
    return config


def get_sweep():
    return Sweep(
        grid(config_of, rule=("linear", "swla", "dla", "titans"), read=tuple(READS)),
        seeds=(0, 1, 2),
        number="exact",
        by="length",
        lengths=(256, 384, 512, 768, 1024),
        picture=Lines(x="length", lines="read", panels="rule"),
        title="S-NIAH-1, trained on 256 tokens",
    )
