"""Recall: multi-query associative recall (MQAR), where caching shows.

    python train.py --config=configs/mqar.py                  # linear attention with GRM
    python train.py --config=configs/mqar.py:linear,none      # the same RNN without caching
    python train.py --config=configs/mqar.py:titans,grm       # RULE,AGGREGATION

The model reads up to 64 pairs of a key and a value and must name the value of every key that comes
again. A fixed-size state does not hold them all; one layer with segments of 8 tokens, 4 pairs
each, has to find the right cached memory. docs/results.md has the recall by update rule and by how
memories are read, of the sweep configs/sweeps/figure5.py. A run takes two to three minutes on two
cores (Titans five), and `python eval.py --workdir=runs/mqar` evaluates it.
"""

from configs import base


def get_config(arg: str = "linear,grm"):
    rule, aggregation = arg.split(",")
    config = base.get_config()
    config.data.update(task="mqar", length=256, batch_size=32, eval_batch_size=64, eval_batches=2)
    config.model.update(dim=40, num_layers=1, num_heads=2, mlp_dim=0)
    # Without caching the segment is the whole sequence: its length sets what a state retains first.
    segment_len = config.data.length if aggregation == "none" else 8
    config.model.memory.update(
        rule=rule, aggregation=aggregation, segment_len=segment_len, chunk_len=8, expansion=1
    )
    # Counts are mixed in training, as in Zoology; the README compares recall at the largest.
    config.data.mqar.update(vocab_size=256, pairs=(16, 32, 64), eval_pairs=(8, 16, 32, 64))
    config.train.update(
        steps=1000,
        learning_rate=8e-3,
        weight_decay=0.0,
        eval_every=500,
        checkpoint_every=250,
        log_every=10,
        tensorboard=False,
    )
    return config
