"""The experiments' models: their size, and that they trace at full size."""

import jax
import jax.numpy as jnp
import pytest

from configs import paper_1b3, paper_760m, tiny
from mc_jax.errors import InputError
from mc_jax.model import LanguageModel, ModelConfig, param_count

SIZES = [(paper_760m, 760e6, 1536, 24, 16), (paper_1b3, 1.3e9, 2048, 18, 8)]
RULES = ("linear", "swla", "dla", "titans")
AGGREGATIONS = ("none", "residual", "grm", "soup", "ssc")
EXPERIMENTS = [f"{rule},{aggregation}" for rule in RULES for aggregation in AGGREGATIONS]


def model_of(config):
    return ModelConfig.from_dict(config.model.to_dict())


@pytest.mark.parametrize(("file", "size", "dim", "layers", "heads"), SIZES, ids=["760m", "1b3"])
@pytest.mark.parametrize("experiment", [*EXPERIMENTS, "transformer"])
def test_the_paper_sizes_are_what_they_are_called(file, size, dim, layers, heads, experiment):
    config = model_of(file.get_config(experiment))
    assert (config.dim, config.num_layers, config.num_heads) == (dim, layers, heads)
    assert (config.vocab_size, config.memory.segment_len) == (32_000, 256)
    assert param_count(config) == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize("file", [paper_760m, paper_1b3], ids=["760m", "1b3"])
@pytest.mark.parametrize("experiment", ["swla,ssc", "titans,grm", "transformer"])
def test_the_paper_sizes_trace_at_full_length(file, experiment):
    experiment_config = file.get_config(experiment)
    config = model_of(experiment_config)
    model = LanguageModel(config)
    ids = jax.ShapeDtypeStruct((2, experiment_config.data.length), jnp.int32)

    def loss(params, ids):
        return jnp.mean(model.apply({"params": params}, ids))

    params = jax.eval_shape(model.init, jax.random.key(0), ids)["params"]
    value, grads = jax.eval_shape(jax.value_and_grad(loss), params, ids)
    assert value.dtype == jnp.float32
    assert jax.tree.all(jax.tree.map(lambda p, g: p.shape == g.shape, params, grads))


def test_the_paper_trains_on_half_a_million_tokens_a_step():
    config = paper_760m.get_config()
    step = config.data.length * config.data.batch_size
    assert step == pytest.approx(0.5e6, rel=0.05)
    assert config.train.steps * step == pytest.approx(30e9, rel=1e-3)


def test_an_unknown_experiment_is_refused():
    for experiment, field in (("titans", "--config"), ("delta,grm", "model.memory.rule")):
        with pytest.raises(InputError) as caught:
            paper_760m.get_config(experiment)
        assert caught.value.field == field


@pytest.mark.parametrize("task", ["text", "mqar", "needles"])
def test_the_tiny_model_is_tiny(task):
    config = tiny.get_config(task)
    assert param_count(model_of(config)) < 60_000
    assert config.data.task == task
