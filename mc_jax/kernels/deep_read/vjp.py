"""The gradient of the kernels that read MLP memories."""

import functools

import jax
import jax.numpy as jnp

from mc_jax.kernels.deep_read import backward, forward
from mc_jax.kernels.deep_read.config import Call, Config
from mc_jax.kernels.gates import Router
from mc_jax.memory.network import MlpWeights
from mc_jax.typing import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def read(
    call: Call,
    config: Config,
    interpret: bool,
    first: Array,
    q: Array,
    router: Router | None,
    weights: MlpWeights,
) -> tuple[Array, Array]:
    """Cached part of the features [head_dim, tokens] and the online memory's gates [tokens]."""
    y, own = forward.forward(call, config, interpret, first, q, router, weights)
    return y, own[0]


def _forward(call, config, interpret, first, q, router, weights):
    y, own = read(call, config, interpret, first, q, router, weights)
    # Nothing else is kept: gates and hidden layers would be the largest arrays of all.
    return (y, own), (first, q, router, weights, y if call.routed else None)


def _backward(call, config, interpret, residuals, cotangents):
    first, q, router, weights, y = residuals
    dy, down = cotangents
    down = down[None] if call.routed else None
    dq, drouter, dweights = backward.backward(
        call, config, interpret, first, q, router, weights, y, dy, down
    )
    if router is not None:
        drouter = Router(
            _total(drouter.u, router.u), drouter.online[0], drouter.descriptors[: call.memories]
        )
    return None, _total(dq, q), drouter, dweights


def _total(parts: Array, like: Array) -> Array:
    """The sum over stacks of memories."""
    return (parts[0] if parts.shape[0] == 1 else jnp.sum(parts, 0)).astype(like.dtype)


read.defvjp(_forward, _backward)
