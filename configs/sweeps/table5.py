"""Table 5: what each part of memory caching is worth, for Titans with GRM and with SSC.

    python train.py sweep --sweep=configs/sweeps/table5.py        # recall of configs/mqar.py
    python train.py sweep --sweep=configs/sweeps/table5.py:text   # bits per byte

The paper's rows, of which "shared u and q" is empty there, and two of ours: segments described by
the mean of their values in place of their keys, and memories that are snapshots of one recurrence
in place of independent ones. What a row is called is what it changes of "full".
A run takes three to five minutes on one core (linear memories two), all 42 about two and a half
hours on recall and three on text, which is trained for half the steps of the default job.

"no gating" of GRM is the plain sum of all reads. SSC selects by score, so that without one there is
nothing to select by: here it reads the last memories, with weights that fall by 1% a segment.
"""

from configs import default, mqar
from mc_jax.errors import InputError
from mc_jax.sweeps import Cell, Rows, Sweep

NUMBERS = {"recall": "accuracy", "text": "bits_per_byte"}
NO_GATING = {
    "grm": {"gate": "none"},
    "ssc": {"gate": "average", "average_decay": 0.99},
}
ROWS: dict[str, dict] = {
    "full": {},
    "no context dependence": {"gate": "position"},
    "no gating": NO_GATING,
    "linear memory": {"rule": "linear"},
    "shared u and q": {"gate": "shared_query"},
    "values pooled": {"pooled": "values"},
    "checkpoint writes": {"write_mode": "checkpoint"},
}


def config_of(task, aggregation, row):
    if task == "recall":
        config = mqar.get_config(f"titans,{aggregation}")
        config.data.mqar.eval_pairs = (64,)
    else:
        config = default.get_config()
        config.model.memory.update(rule="titans", aggregation=aggregation)
        config.train.steps = 600
    changes = ROWS[row]
    config.model.memory.update(changes[aggregation] if row == "no gating" else changes)
    return config


def get_sweep(task: str = "recall"):
    if task not in NUMBERS:
        raise InputError("--sweep", task, "configs/sweeps/table5.py:" + " | ".join(NUMBERS))
    cells = [
        Cell({"aggregation": how, "row": row}, config_of(task, how, row))
        for how in ("grm", "ssc")
        for row in ROWS
    ]
    picture = Rows(rows="row", panels="aggregation")
    return Sweep(cells, (0, 1, 2), NUMBERS[task], picture, title="Ablations of Titans")
