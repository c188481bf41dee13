"""Sequences to compress, and an implementation's outputs and gradients of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mc_jax.kernels.deep_write.api import deep_write
from mc_jax.kernels.deep_write.config import Config
from mc_jax.memory.deep import DLAGates, TitansGates
from mc_jax.memory.network import DeepParams, NormParams
from mc_jax.memory.rule import get_rule
from tests.compiling import quick_jit
from tests.kernels import reads

# Writes in bfloat16 are held against the reference in bfloat16: types are equal, too.
assert_close = functools.partial(reads.assert_close, same_types=True)


@dataclasses.dataclass(frozen=True)
class Case:
    rule: str
    mem_norm: str
    write_mode: str
    head_dim: int
    chunk_len: int
    segment_len: int
    length: int
    activation: str = "gelu"
    dtype: type = jnp.float32
    heads: int = 2
    config: Config | None = None
    extreme: bool = False


def arguments(case: Case):
    """Learned parts, tokens and prepared gates; outputs stay of the order of 1."""
    rng = np.random.default_rng(0)
    shape, hidden = (case.heads, case.length), 4 * case.head_dim

    def normal(*shape, scale=1.0):
        return jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)

    def uniform(low, high):
        return jnp.asarray(rng.uniform(low, high, shape), jnp.float32)

    q, k, v = (normal(*shape, case.head_dim) for _ in range(3))
    q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    norm = None
    if case.mem_norm == "layer":
        norm = NormParams(
            1 + normal(case.heads, case.head_dim, scale=0.1),
            normal(case.heads, case.head_dim, scale=0.1),
        )
    params = DeepParams(
        normal(case.heads, case.head_dim, hidden, scale=hidden**-0.5),
        normal(case.heads, hidden, case.head_dim),
        norm,
    )
    alpha, beta, rate = uniform(0.99, 1), uniform(0.5, 1), uniform(0, 1)
    if case.extreme:
        # A retention of 0 underflowed, one of 1 forgets nothing, and some tokens write nothing.
        place = jnp.arange(case.length)
        alpha = jnp.where(place % 7 == 3, 0.0, jnp.where(place % 3 == 0, 1.0, alpha))
        alpha = jnp.where(place % 11 == 5, 1e-30, alpha)
        beta = jnp.where(place % 4 == 1, 0.0, jnp.where(place % 4 == 2, 1.0, beta))
        rate = jnp.where(place % 5 == 2, 0.0, rate)
    if case.rule == "titans":
        gates = TitansGates(alpha, beta, rate * 0.25 / case.chunk_len)
    else:
        gates = DLAGates(rate * 0.5 / case.chunk_len, alpha)
    steps = rule_of(case).prepare(gates, jnp.ones(shape, bool), jnp.float32)
    return params, *(x.astype(case.dtype) for x in (q, k, v)), steps


def rule_of(case: Case):
    return get_rule(case.rule, mem_norm=case.mem_norm, activation=case.activation)


def outputs_and_gradients(case: Case, implementation: str):
    """Written, and the gradients of all arguments for cotangents of all outputs."""
    config = case.config if implementation.startswith("pallas") else None
    write = functools.partial(
        deep_write,
        rule_of(case),
        segment_len=case.segment_len,
        chunk_len=case.chunk_len,
        write_mode=case.write_mode,
        implementation=implementation,
        config=config,
    )

    @quick_jit
    def run(*args):
        written, pull = jax.vjp(write, *args)
        leaves, tree = jax.tree.flatten(written)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        cotangents = [
            jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, leaves, strict=True)
        ]
        return written, pull(tree.unflatten(cotangents))

    return run(*arguments(case))
