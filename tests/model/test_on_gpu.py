"""The language model as a GPU runs it, its kernels step by step."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from mc_jax.inference import make_room
from mc_jax.model import LanguageModel, MemoryConfig, ModelConfig
from tests.kernels.gpu import imitated_gpu  # noqa: F401

LENGTH = 96


def model_of(aggregation: str, dtype: str, **memory) -> tuple[LanguageModel, ModelConfig]:
    facts = {"segment_len": 16, "chunk_len": 16, "top_k": 2} | memory
    memory = MemoryConfig(aggregation=aggregation, **facts)
    config = ModelConfig(
        vocab_size=40, dim=32, num_layers=2, num_heads=2, mlp_dim=48, memory=memory
    )
    config = dataclasses.replace(config, dtype=dtype, scan_layers=True, remat="dots")
    return LanguageModel(config), config


def inputs(model):
    tokens = jax.random.randint(jax.random.key(0), (2, LENGTH), 0, 40)
    return model.init(jax.random.key(1), tokens), tokens


def gradients(model, params, tokens):
    def loss(params):
        logits = jax.nn.log_softmax(model.apply(params, tokens))
        return -jnp.mean(jnp.take_along_axis(logits, tokens[..., None], -1))

    return jax.value_and_grad(loss)(params)


def distances(actual, expected) -> list[float]:
    """Of each leaf, over the expected one's length."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return [float(jnp.linalg.norm(x - y) / jnp.linalg.norm(y)) for x, y in pairs]


@pytest.mark.parametrize("aggregation", ["none", "grm"])
def test_a_step_is_as_near_to_float32_as_elsewhere(aggregation, imitated_gpu):  # noqa: F811
    exact, _ = model_of(aggregation, "float32")
    params, tokens = inputs(exact)
    expected = gradients(exact, params, tokens)
    model, _ = model_of(aggregation, "bfloat16")
    here = gradients(model, params, tokens)
    with imitated_gpu():
        there = jax.jit(lambda params: gradients(model, params, tokens))(params)
    for near, far in zip(distances(there, expected), distances(here, expected), strict=True):
        assert near <= 1.5 * far + 1e-3


def test_prefill_and_extend_are_the_whole(imitated_gpu):  # noqa: F811
    model, config = model_of("grm", "bfloat16")
    params, tokens = inputs(model)
    exact = model_of("grm", "float32")[0].apply(params, tokens)
    (rounding,) = distances(model.apply(params, tokens), exact)
    with imitated_gpu():
        first, cache = model.apply(params, tokens[:, :41], method="extend")
        cache = make_room(config, cache, LENGTH)
        second, _ = model.apply(params, tokens[:, 41:], cache, method="extend")
    (distance,) = distances(jnp.concatenate([first, second], 1), exact)
    assert distance <= 1.5 * rounding


def test_dots_reads_cached_memories_once(imitated_gpu):  # noqa: F811
    """The backward pass keeps what they gave, and computes the rest again."""
    model, _ = model_of("ssc", "bfloat16")
    params, tokens = inputs(model)
    with imitated_gpu():
        program = str(jax.make_jaxpr(lambda p: gradients(model, p, tokens))(params))
    assert program.count("name=linear_read_selected_forward") == 1
    assert program.count("name=linear_read_selected_backward") == 1
    assert program.count("name=convolve_forward") == 2


def test_chunked_is_the_best_kernel_of_the_convolution_too(imitated_gpu):  # noqa: F811
    model, _ = model_of("grm", "bfloat16", implementation="chunked")
    params, tokens = inputs(model)
    with imitated_gpu():
        program = str(jax.make_jaxpr(model.apply)(params, tokens))
    assert "name=convolve_forward" in program
