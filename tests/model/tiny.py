"""Models small enough to compile in a moment, each compiled once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mc_jax.model import LanguageModel, ModelConfig

VOCAB = 24
MEMORY = dict(segment_len=4, chunk_len=2, top_k=2, position_slots=3)


def config(memory=None, **changes):
    """A model of one block of width 8, with changes."""
    values = dict(vocab_size=VOCAB, dim=8, num_layers=1, num_heads=2, mlp_dim=12)
    return ModelConfig.from_dict({**values, **changes, "memory": {**MEMORY, **(memory or {})}})


def quick_jit(function):
    """jax.jit that optimises little: these programs run a few times only."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options)


def tokens(batch=2, length=11, seed=0):
    """Random token ids."""
    return np.random.default_rng(seed).integers(0, VOCAB, (batch, length), dtype=np.int32)


@functools.cache
def init(config):
    """Initial parameters, in float32 also where a test that asks first runs in float64."""
    with jax.enable_x64(False):
        return quick_jit(LanguageModel(config).init)(jax.random.key(0), tokens(1, 2))["params"]


def perturbed(config):
    """Parameters moved off their initial values, so that nothing is zero or one by accident."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + np.float32(0.3 * rng.normal(size=x.shape)), init(config))


@functools.cache
def forward(config):
    """Function of (params, ids) that returns the logits."""
    model = LanguageModel(config)
    return quick_jit(lambda params, ids: model.apply({"params": params}, ids))


def loss(config, params, ids):
    """Mean cross-entropy of the next token."""
    logits = LanguageModel(config).apply({"params": params}, ids[:, :-1])
    targets = jnp.asarray(ids)[:, 1:, None]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), targets, -1))


@functools.cache
def value_and_grad(config):
    """Function of (params, ids) that returns the loss and its gradient."""
    return quick_jit(jax.value_and_grad(functools.partial(loss, config)))


def assert_close(found, expected, tolerance):
    """Every leaf agrees, relative to its largest entry."""

    def check(path, x, y):
        bound = tolerance * max(float(jnp.abs(y).max()), 1e-2)
        error = float(jnp.abs(x - y).max())
        assert error <= bound, f"{jax.tree_util.keystr(path)}: {error:.2g} > {bound:.2g}"

    jax.tree.map_with_path(check, found, expected)
