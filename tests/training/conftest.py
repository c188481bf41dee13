"""The smallest experiment, and compiled programs that are shared by its runs."""

import pytest

from configs import tiny


@pytest.fixture
def config():
    """Recall, 12 steps, a checkpoint every 4 and the held-out loss every 6."""
    config = tiny.get_config("mqar")
    config.model.update(vocab_size=64, num_layers=1, dim=16, mlp_dim=16)
    config.data.update(length=32)
    config.train.update(steps=12, eval_every=6, checkpoint_every=4, log_every=1, tensorboard=False)
    return config.lock()
