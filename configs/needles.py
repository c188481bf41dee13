"""Needle in a haystack: find a number of 7 digits in 256 tokens, S-NIAH-1 of RULER.

    python train.py --config=configs/needles.py                  # linear attention with GRM
    python train.py --config=configs/needles.py:linear,none      # the same RNN without caching
    python train.py --config=configs/needles.py:titans,grm       # RULE,AGGREGATION

Prompts are RULER's (docs/needles.md), in the pieces of configs/tokenizers/needles.json: in bytes a
prompt's instructions alone would take 400. A run takes one to three minutes on one core, by rule.
It can be asked on longer haystacks than it was trained on:

    python eval.py --workdir=runs/needles --length=512      # answers, and where the gates look
    python eval.py needles --workdir=runs/needles --tasks=1 --lengths 256 512 1024

The sweep configs/sweeps/needles.py compares all rules and ways of reading.
"""

from configs import base


def get_config(arg: str = "linear,grm"):
    rule, aggregation = arg.split(",")
    config = base.get_config()
    config.data.update(
        task="needles",
        tokenizer="hf:configs/tokenizers/needles.json",
        length=256,
        batch_size=8,
        eval_batch_size=64,
        eval_batches=4,
    )
    config.model.update(vocab_size=512, dim=32, num_layers=2, num_heads=2, mlp_dim=0)
    # Without caching the segment is the whole sequence: its length sets what a state retains first.
    segment_len = config.data.length if aggregation == "none" else 32
    config.model.memory.update(
        rule=rule, aggregation=aggregation, segment_len=segment_len, chunk_len=8, expansion=1
    )
    config.train.update(
        steps=1500,
        learning_rate=4e-3,
        weight_decay=0.0,
        eval_every=500,
        checkpoint_every=250,
        log_every=10,
        tensorboard=False,
    )
    return config
