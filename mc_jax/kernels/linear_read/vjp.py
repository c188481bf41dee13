"""The gradient of the matrix-memory kernels."""

import functools

import jax
import jax.numpy as jnp

from mc_jax.kernels.gates import Router
from mc_jax.kernels.linear_read import pallas_tpu
from mc_jax.kernels.linear_read.config import Call, Config
from mc_jax.typing import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def read(
    call: Call,
    config: Config,
    interpret: bool,
    first: Array,
    q: Array,
    router: Router | None,
    weights: Array,
) -> tuple[Array, Array]:
    """Cached part of the outputs [out, tokens] and the online memory's gates [tokens]."""
    y, own = pallas_tpu.forward(call, config, interpret, first, q, router, weights)
    return y, own[0]


def _forward(call, config, interpret, first, q, router, weights):
    y, own = read(call, config, interpret, first, q, router, weights)
    # Nothing else is kept: the gates are cheaper to compute again than to store.
    return (y, own), (first, q, router, weights, y if call.routed else None)


def _backward(call, config, interpret, residuals, cotangents):
    first, q, router, weights, y = residuals
    dy, down = cotangents
    down = down[None] if call.routed else None
    dq, drouter, dw = pallas_tpu.backward(
        call, config, interpret, first, q, router, weights, y, dy, down
    )
    if router is not None:
        drouter = Router(_total(drouter.u, router.u), drouter.online[0], drouter.descriptors)
    return None, _total(dq, q), drouter, dw


def _total(parts: Array, like: Array) -> Array:
    """The sum over stacks of memories."""
    return (parts[0] if parts.shape[0] == 1 else jnp.sum(parts, 0)).astype(like.dtype)


read.defvjp(_forward, _backward)
