"""Needle in a haystack: find a number of 3 digits in 512 bytes.

    python train.py --config=configs/needles.py                  # linear attention with GRM
    python train.py --config=configs/needles.py:linear,none      # the same RNN without caching
    python train.py --config=configs/needles.py:titans,grm       # RULE,AGGREGATION

Prompts are those of S-NIAH-1 in bytes, but for the length of the number (docs/needles.md). Then

    python eval.py --workdir=runs/needles      # answers, and where the gates look
    python eval.py needles --workdir=runs/needles --tasks=1 --digits=3 --lengths 640 1024 2048
"""

from configs import base


def get_config(arg: str = "linear,grm"):
    rule, aggregation = arg.split(",")
    config = base.get_config()
    config.data.update(
        task="needles", length=512, batch_size=16, eval_batch_size=64, eval_batches=2
    )
    config.data.needles.digits = 3
    config.model.update(dim=64, num_layers=2, num_heads=2, mlp_dim=128)
    # Without caching the segment is the whole sequence: its length sets what a state retains first.
    segment_len = config.data.length if aggregation == "none" else 32
    config.model.memory.update(
        rule=rule, aggregation=aggregation, segment_len=segment_len, chunk_len=32
    )
    config.train.update(
        steps=1000,
        learning_rate=8e-3,
        weight_decay=0.0,
        eval_every=100,
        checkpoint_every=100,
        log_every=10,
        tensorboard=False,
    )
    return config
