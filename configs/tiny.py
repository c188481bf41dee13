"""A model of two blocks for a few steps: shows in seconds that everything runs.

    python train.py --config=configs/tiny.py            # text
    python train.py --config=configs/tiny.py:mqar       # recall
    python train.py --config=configs/tiny.py:needles    # needle in a haystack

It learns next to nothing.
"""

from configs import base


def get_config(task: str = "text"):
    config = base.get_config()
    config.model.update(dim=32, num_layers=2, num_heads=2, mlp_dim=64)
    config.model.memory.update(segment_len=16, chunk_len=8)
    config.data.update(task=task, length=64, batch_size=4, eval_batch_size=4, eval_batches=2)
    if task == "needles":
        config.data.length = 512  # of bytes: the words of a prompt alone are 350
    config.data.mqar.update(vocab_size=64, pairs=(4,), eval_pairs=(2, 4))
    config.train.update(steps=20, eval_every=10, checkpoint_every=10)
    return config
