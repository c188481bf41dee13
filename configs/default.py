"""The default job: a small memory-caching language model on the Python standard library.

    python train.py

Bytes in, bytes out: 256-byte contexts, linear attention whose states are cached every 32 tokens
and read with GRM.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.update(dim=128, num_layers=2, num_heads=4, mlp_dim=256)
    config.model.memory.update(rule="linear", aggregation="grm", segment_len=32, chunk_len=32)
    config.data.update(length=256, batch_size=8, eval_batch_size=16)
    config.train.update(steps=1200, learning_rate=4e-3, eval_every=300, checkpoint_every=300)
    return config
