"""The smallest experiment, and compiled programs that are shared by its runs."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs import tiny


@pytest.fixture
def config():
    """Recall, 12 steps, a checkpoint every 4 and the held-out loss every 6."""
    config = tiny.get_config("mqar")
    config.model.update(vocab_size=64, num_layers=1, dim=16, mlp_dim=16)
    config.data.update(length=32)
    config.train.update(steps=12, eval_every=6, checkpoint_every=4, log_every=1, tensorboard=False)
    return config.lock()


@pytest.fixture(scope="session")
def compiled_programs(tmp_path_factory):
    """A folder that compiled programs are kept in."""
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def compile_once(compiled_programs):
    """Take programs that an earlier test has compiled from the folder."""
    settings = {
        "jax_compilation_cache_dir": compiled_programs,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield
