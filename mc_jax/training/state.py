"""What a training run carries from step to step."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mc_jax.typing import Array, Int, PyTree


class TrainState(NamedTuple):
    """Everything that a step reads and writes.

    No random key is among it: the model draws numbers at its initialisation only, from the seed.
    """

    step: Int[Array, ""]  # updates done so far
    params: PyTree
    opt_state: optax.OptState


def initial_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """State before the first step; the same `seed` gives the same parameters."""
    params = model.init(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))["params"]
    return TrainState(jnp.int32(0), params, optimizer.init(params))
