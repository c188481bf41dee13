"""The default job: a small memory-caching language model on the Python standard library.

    python train.py

Bytes in, bytes out: 512-byte contexts, linear attention whose states are cached every 64 tokens
and read with GRM.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.model.update(dim=128, num_layers=3, num_heads=4, mlp_dim=384)
    config.model.memory.update(rule="linear", aggregation="grm", segment_len=64, chunk_len=64)
    config.data.update(length=512, batch_size=16, eval_batch_size=16)
    config.train.update(steps=600, learning_rate=4e-3, eval_every=100, checkpoint_every=100)
    return config
