"""Splash attention: step by step on a CPU it is the softmax, and TPUs have it by default."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mc_jax.model import LanguageModel, ModelConfig
from mc_jax.model.splash import splash
from mc_jax.sharding import MeshConfig, make_mesh
from tests.kernels.reads import assert_close
from tests.kernels.tpu import devices, needs_libtpu


@pytest.mark.parametrize(
    "length, head_dim, window", [(200, 64, None), (128, 96, 50), (130, 16, 2), (100, 16, 300)]
)
def test_it_is_the_softmax(length, head_dim, window):
    """With gradients, for lengths and widths that are filled up."""
    q, k, v, cotangent = jax.random.normal(jax.random.key(0), (4, 2, length, 3, head_dim))

    def with_gradients(attend):
        y, back = jax.vjp(attend, q, k, v)
        return y, back(cotangent)

    local = None if window is None else (window - 1, 0)
    softmax = functools.partial(
        jax.nn.dot_product_attention, is_causal=True, local_window_size=local
    )
    actual = with_gradients(lambda q, k, v: splash(q, k, v, window, interpret=True))
    assert_close(actual, with_gradients(softmax), 2e-5)


@needs_libtpu
@pytest.mark.parametrize("sizes", [{}, {"data": 2, "tensor": 2}], ids=["one device", "four"])
def test_a_tpu_runs_it(sizes):
    """Forward and backward, a kernel for each of two blocks."""
    config = ModelConfig(
        vocab_size=64,
        dim=64,
        num_layers=2,
        num_heads=2,
        mlp_dim=64,
        pattern=("attention", "sliding"),
    )
    model = LanguageModel(config)
    mesh = make_mesh(MeshConfig(**sizes), devices("v5e")[: 4 if sizes else 1])
    tokens = jax.ShapeDtypeStruct((2, 256), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens), tokens
    here = NamedSharding(mesh, PartitionSpec())
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    with jax.set_mesh(mesh):
        loss = jax.grad(lambda params, tokens: jnp.mean(model.apply(params, tokens) ** 2))
        text = jax.jit(loss).lower(*args).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 4
    assert "splash_mha_fwd" in text and "splash_mha_dkv" in text
