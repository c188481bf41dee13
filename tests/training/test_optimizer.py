"""The learning rate's values, and what weight decay touches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mc_jax.model import LanguageModel, ModelConfig
from mc_jax.training.config import TrainConfig
from mc_jax.training.optimizer import MATRICES, decay_mask, learning_rate, make_optimizer


def test_learning_rate_rises_and_falls():
    config = TrainConfig(
        steps=101, learning_rate=2e-3, warmup_fraction=0.2, final_lr_fraction=0.1
    )  # 20 steps of warm-up, then 80 to the last
    rates = [float(learning_rate(config)(step)) for step in (0, 10, 19, 20, 60, 100)]
    half = 2e-3 * (0.1 + 0.9 * 0.5)
    expected = [2e-3 / 21, 2e-3 * 11 / 21, 2e-3 * 20 / 21, 2e-3, half, 2e-4]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_learning_rate_of_a_job_cut_short(steps, warmup):
    config = TrainConfig(steps=steps, learning_rate=1.0, warmup_fraction=warmup)
    rates = [float(learning_rate(config)(step)) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    if warmup == 0:
        assert rates[0] == 1.0


def test_decay_mask_names_every_parameter():
    """Whatever is no matrix is one of the vectors here; a new name has to be put on a side."""
    vectors = {"scale", "bias", "norm_scale", "norm_bias", "temperature"}
    seen = set()
    for rule in ("linear", "swla", "titans"):
        for gate in ("context", "shared_query", "position"):
            for scan in (True, False):
                config = ModelConfig.from_dict(
                    dict(
                        dim=16,
                        num_layers=2,
                        num_heads=2,
                        pattern=("memory", "attention"),
                        tie_embeddings=False,
                        scan_layers=scan,
                        memory=dict(rule=rule, gate=gate, decay="on"),
                    )
                )
                tokens = jnp.zeros((1, 2), jnp.int32)
                shapes = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), tokens)
                mask = decay_mask(shapes["params"])
                for path, decayed in jax.tree_util.tree_leaves_with_path(mask):
                    name = path[-1].key
                    assert name in (MATRICES if decayed else vectors), path
                    seen.add(name)
    assert seen == vectors | set(MATRICES)


def test_decay_shrinks_matrices_only():
    params = {"kernel": jnp.full((2, 2), 3.0), "scale": jnp.full((2, 2), 3.0)}
    config = TrainConfig(steps=10, learning_rate=0.1, warmup_fraction=0.0, weight_decay=0.5)
    optimizer = make_optimizer(config)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["kernel"], 3.0 * (1 - 0.1 * 0.5), rtol=1e-6)
    np.testing.assert_array_equal(params["scale"], 3.0)


def test_clipping_limits_the_global_norm():
    params = {"kernel": jnp.zeros(4)}
    gradient = {"kernel": jnp.full(4, 100.0)}  # norm 200
    clip = make_optimizer(TrainConfig(clip_norm=2.0, beta1=0.0))
    state = clip.update(gradient, clip.init(params), params)[1]
    moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(optax.tree.norm(moment), 2.0, rtol=1e-6)
    free = make_optimizer(TrainConfig(clip_norm=0.0, beta1=0.0))
    state = free.update(gradient, free.init(params), params)[1]
    moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(optax.tree.norm(moment), 200.0, rtol=1e-6)
