"""A sweep's file of two cells and two seeds, small enough for seconds."""

import pytest

FILE = """
from configs import tiny
from mc_jax.sweeps import Lines, Sweep, grid


def config_of(aggregation):
    config = tiny.get_config("mqar")
    config.model.update(vocab_size=64, num_layers=1, dim=8, mlp_dim=8)
    config.model.memory.aggregation = aggregation
    config.data.update(length=32, eval_batches=1)
    config.train.update(steps=4, eval_every=4, checkpoint_every=4, log_every=1)
    config.train.update(learning_rate=LEARNING_RATE[aggregation], tensorboard=False)
    return config


LEARNING_RATE = {"none": 0.01, "grm": 0.01}


def get_sweep():
    return Sweep(
        grid(config_of, aggregation=("none", "grm")),
        seeds=(0, 1),
        number="loss",
        picture=Lines(x="pairs", lines="aggregation"),
        by="pairs",
    )
"""


@pytest.fixture
def file(tmp_path):
    """Its path."""
    path = tmp_path / "two.py"
    path.write_text(FILE)
    return path
