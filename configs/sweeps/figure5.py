"""Figure 5: recall (MQAR) over model width and number of pairs, by how memories are read.

    python train.py sweep --sweep=configs/sweeps/figure5.py                  # linear attention
    python train.py sweep --sweep=configs/sweeps/figure5.py:titans           # or swla, dla
    python train.py sweep --sweep=configs/sweeps/figure5.py:linear,zoology   # the field's grid
    python train.py sweep --sweep=configs/sweeps/figure5.py --only learning_rate=0.008

A cell is configs/mqar.py at another width. One run serves every number of pairs: training mixes
them, and each is evaluated. Cells take the best of three learning rates. A run takes one to four
minutes on one core, by width; all 162 about five hours, with one learning rate (the last command)
under two. MLP memories (dla, titans) take about twice that.

The grid `zoology` is that of the field (Arora et al. 2023): a run for every pair of length and
number of pairs, two layers, a vocabulary of 8,192, four learning rates, five seeds. It is meant for
a GPU or TPU; --share divides it.
"""

import numpy as np

from configs import mqar
from configs.reads import READS
from mc_jax.errors import InputError
from mc_jax.sweeps import Lines, Sweep, grid

PAIRS = (4, 8, 16, 32, 64)
# Length by number of pairs, as in Zoology.
LENGTHS = {4: 64, 8: 128, 16: 256, 32: 256, 64: 256, 128: 512}


def config_of(rule, read, dim, learning_rate):
    aggregation, segmentation = READS[read]
    config = mqar.get_config(f"{rule},{aggregation}")
    config.model.dim = dim
    config.model.memory.segmentation = segmentation
    config.data.mqar.update(pairs=PAIRS, eval_pairs=PAIRS)
    config.train.learning_rate = learning_rate
    return config


def zoology(rule, read, dim, pairs, learning_rate):
    config = config_of(rule, read, dim, learning_rate)
    length = LENGTHS[pairs]
    config.model.num_layers = 2
    config.model.memory.segment_len = length if read == "base" else 16
    config.data.update(length=length, batch_size=64)
    config.data.mqar.update(vocab_size=8192, pairs=(pairs,), eval_pairs=(pairs,))
    config.model.vocab_size = 8192
    config.train.update(steps=10_000, eval_every=2_000, checkpoint_every=2_000, log_every=100)
    return config


def get_sweep(arg: str = "linear"):
    rule, *name = arg.split(",")
    if name not in ([], ["zoology"]):
        allowed = "configs/sweeps/figure5.py:RULE or :RULE,zoology"
        raise InputError("--sweep", arg, allowed)
    picture = Lines(x="dim", lines="read", panels="pairs")
    title = f"Recall of {rule} memories"
    if name:
        cells = grid(
            zoology,
            rule=(rule,),
            read=tuple(READS),
            dim=(16, 32, 64, 128, 256, 512),
            pairs=tuple(LENGTHS),
            learning_rate=_log_uniform(1e-4, 1e-2, 4),
        )
        seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
        by = None
    else:
        cells = grid(
            config_of,
            rule=(rule,),
            read=tuple(READS),
            dim=(16, 32, 64),
            learning_rate=_log_uniform(2e-3, 3.2e-2, 3),
        )
        seeds, by = (0, 1, 2), "pairs"
    return Sweep(cells, seeds, "accuracy", picture, by=by, choose="learning_rate", title=title)


def _log_uniform(lowest, highest, count):
    return tuple(float(f"{rate:.3g}") for rate in np.geomspace(lowest, highest, count))
