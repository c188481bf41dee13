"""Every key of an experiment with its default; the other files here change a few of them.

What a key means stands beside its default, in the files that this one takes them from.
"""

from ml_collections import ConfigDict

from mc_jax.data.config import default_config as data_config
from mc_jax.model import default_config as model_config
from mc_jax.sharding import default_config as mesh_config
from mc_jax.training.config import default_config as train_config


def get_config() -> ConfigDict:
    """All defaults."""
    config = ConfigDict()
    config.seed = 0  # of the initial parameters and the order of the data
    config.model = model_config()  # mc_jax/model/config.py
    config.data = data_config()  # mc_jax/data/config.py
    config.train = train_config()  # mc_jax/training/config.py
    config.mesh = mesh_config()  # mc_jax/sharding/config.py
    config.eval = ConfigDict()
    return config
