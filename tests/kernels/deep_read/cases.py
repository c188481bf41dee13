"""Memories to read, and an implementation's outputs and gradients of them."""

import dataclasses

import jax
import jax.numpy as jnp

from mc_jax.kernels.deep_read import Config, deep_read
from mc_jax.kernels.gates import Router
from mc_jax.memory.network import MlpWeights
from tests.kernels.reads import TOLERANCE, assert_close, program

# Small blocks, so that every loop of the kernels runs.
SMALL = Config(tokens=256, part=128, resident=8, resident_backward=8, group=2)


@dataclasses.dataclass(frozen=True)
class Case:
    """One read."""

    head_dim: int = 32
    tokens: int = 300
    memories: int = 9
    segment_len: int = 32
    first_segment: int = 0
    top_k: int | None = None
    dtype: type = jnp.float32
    routed: bool = True
    mem_norm: str = "layer"
    activation: str = "gelu"
    hidden: int | None = None
    config: Config | None = SMALL

    @property
    def options(self) -> dict:
        names = ("segment_len", "first_segment", "top_k", "mem_norm", "activation")
        return {name: getattr(self, name) for name in names}


def inputs(case: Case, seed: int = 0):
    """Queries, memories, router, and cotangents of both outputs."""
    keys = iter(jax.random.split(jax.random.key(seed), 8))

    def normal(*shape, dtype=case.dtype, scale=1.0):
        return (scale * jax.random.normal(next(keys), shape)).astype(dtype)

    d, tokens, memories = case.head_dim, case.tokens, case.memories
    hidden = case.hidden or 4 * d
    q = normal(d, tokens)
    weights = MlpWeights(
        normal(memories, d, hidden, scale=hidden**-0.5), normal(memories, hidden, d, scale=d**-0.5)
    )
    router = Router(
        normal(d, tokens, scale=d**-0.5),
        normal(tokens, dtype=jnp.float32),
        normal(memories, d, dtype=jnp.float32),
    )
    cotangents = normal(d, tokens, dtype=jnp.float32), normal(tokens, dtype=jnp.float32)
    return (q, weights, router if case.routed else None), cotangents


def program_of(case: Case, implementation: str):
    """Compiled (args, cotangents) to outputs and gradients."""
    config = case.config if implementation == "pallas_interpret" else None
    return program(deep_read, implementation=implementation, config=config, **case.options)


def outputs_and_gradients(case: Case, implementation: str, args, cotangents) -> dict:
    return program_of(case, implementation)(args, cotangents)


def assert_equals_the_reference(case: Case, implementation: str) -> None:
    """Outputs and gradients are those of the reference in float32."""
    args, cotangents = inputs(case)
    actual = outputs_and_gradients(case, implementation, args, cotangents)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), args)
    expected = outputs_and_gradients(case, "reference", exact, cotangents)
    assert_close(actual, expected, TOLERANCE[case.dtype])
