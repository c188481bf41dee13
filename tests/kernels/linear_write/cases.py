"""Sequences to compress, and an implementation's outputs and gradients of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mc_jax.kernels.linear_write import Config, linear_write
from mc_jax.memory.linear import Writes
from tests.compiling import quick_jit


@dataclasses.dataclass(frozen=True)
class Case:
    write_mode: str
    head_dim: int
    segment_len: int
    length: int
    dtype: type = jnp.float32
    heads: int = 2
    config: Config | None = None
    gates: str = "mild"
    window: int = 0


def arguments(case: Case):
    """Tokens and log retentions."""
    rng = np.random.default_rng(0)
    shape = (case.heads, case.length)
    q, k, v = (jnp.asarray(rng.normal(size=(*shape, case.head_dim)), case.dtype) for _ in range(3))
    alpha = rng.uniform(0.9, 1, shape)
    if case.gates == "extreme":
        # 1 forgets nothing, and what underflowed nearly all.
        place = np.arange(case.length)
        alpha = np.where(place % 3 == 0, 1.0, np.where(place % 7 == 3, 1e-30, alpha))
    if case.gates == "extreme first":
        alpha = np.where(np.arange(case.length) < 128, 1e-30, rng.uniform(0.999, 1, shape))
    if case.gates == "all forget":
        alpha = np.full(shape, 1e-37)
    scale = np.ones((case.heads, 1, case.length))
    if case.window:
        scale = rng.uniform(0, 1, (case.heads, 1 + case.window, case.length))
        scale[:, :, case.length // 3] = 0
    return q, k, v, Writes(*(jnp.asarray(x, jnp.float32) for x in (np.log(alpha), scale)))


def outputs_and_gradients(case: Case, implementation: str, exact: bool = False):
    """Written, and the gradients of all arguments for cotangents of all outputs.

    Args:
      case: what is written.
      implementation: by what.
      exact: compute in float64, and round what comes out.
    """
    write = functools.partial(
        linear_write,
        segment_len=case.segment_len,
        write_mode=case.write_mode,
        implementation=implementation,
        config=case.config if implementation.startswith("pallas") else None,
    )

    def run(cotangents, *args):
        written, pull = jax.vjp(write, *args)
        return written, pull(cotangents)

    args = arguments(case)
    leaves, tree = jax.tree.flatten(jax.eval_shape(write, *args))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    cotangents = tree.unflatten(
        jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, leaves, strict=True)
    )
    if not exact:
        return quick_jit(run)(cotangents, *args)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (cotangents, *args))
        found = quick_jit(run)(*wide)
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), found)
