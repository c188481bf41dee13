"""Memory caching for a model that was trained without it: only the gate over memories is trained.

    python train.py --workdir=runs/plain --config.model.memory.aggregation=none
    python train.py --config=configs/finetune_gate.py:runs/plain        # GRM
    python train.py --config=configs/finetune_gate.py:runs/plain,ssc
    python train.py --config=configs/finetune_gate.py:runs/plain,grm,position   # by distance

Everything else stays as it was trained; memories are kept every training length, and texts are
four times as long, so that there are some. `benchmarks/extrapolation.py` compares this with
post-training caching, which learns nothing.
"""

import json
from pathlib import Path

from configs import base
from mc_jax.errors import InputError


def get_config(arg: str = ""):
    folder, *how = arg.split(",")
    path = Path(folder) / "config.json"
    if not folder or not path.is_file() or len(how) > 2:
        allowed = "configs/finetune_gate.py:FOLDER[,AGGREGATION[,GATE]], the workdir of a run "
        raise InputError("--config", arg, allowed + "without caching, and how it is to read")
    aggregation = how[0] if how else "grm"
    gate = how[1] if how[1:] else "context"
    trained = json.loads(path.read_text())
    if trained["model"]["memory"]["aggregation"] != "none":
        found = trained["model"]["memory"]["aggregation"]
        raise InputError(f"{path}: model.memory.aggregation", found, "none: a run without caching")
    config = base.get_config()
    config.seed = trained["seed"]
    config.model.update(trained["model"])
    config.data.update(trained["data"])
    length = config.data.length
    config.model.memory.update(aggregation=aggregation, gate=gate, segment_len=length)
    config.data.length = 4 * length
    config.data.batch_size = max(1, config.data.batch_size // 4)
    config.data.eval_batch_size = max(1, config.data.eval_batch_size // 4)
    config.train.update(
        init_from=folder,
        trainable="score",
        steps=300,
        learning_rate=1e-2,
        weight_decay=0.0,
        eval_every=100,
        checkpoint_every=100,
    )
    return config
