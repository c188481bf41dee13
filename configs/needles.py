"""Needle in a haystack."""

from configs import base


def get_config(arg: str = "linear,grm"):
    rule, aggregation = arg.split(",")
    config = base.get_config()
    config.data.update(
        task="needles", length=512, batch_size=16, eval_batch_size=64, eval_batches=1
    )
    config.data.needles.digits = 3
    config.model.update(dim=64, num_layers=2, num_heads=2, mlp_dim=128)
    segment_len = config.data.length if aggregation == "none" else 32
    config.model.memory.update(
        rule=rule, aggregation=aggregation, segment_len=segment_len, chunk_len=32
    )
    config.train.update(
        steps=1000,
        learning_rate=8e-3,
        weight_decay=0.0,
        eval_every=100,
        checkpoint_every=500,
        log_every=10,
        tensorboard=False,
    )
    return config
