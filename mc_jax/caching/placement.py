"""Slots of cached memories in the device's memory or in the host's, whichever they lie in.

The type of an array says where it lies. What lies in the host's memory is read and written by the
host, so that only the slots in question travel; no slot is copied to change another one.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compute_on import compute_on

from mc_jax.typing import Array, Int

HOST, DEVICE = jax.memory.Space.Host, jax.memory.Space.Device


def on_host(slots: Any) -> bool:
    """Whether arrays lie in the host's memory."""
    return any(jax.typeof(x).memory_space == HOST for x in jax.tree.leaves(slots))


def fetch(slots: Any) -> Any:
    """All of the slots, on the device."""
    return jax.device_put(slots, DEVICE) if on_host(slots) else slots


def take(slots: Any, index: Int[Array, " taken"]) -> list[Any]:
    """Single slots, on the device; any one where the index is out of range."""
    if not on_host(slots):
        return [_take(slots, i) for i in index]
    taken = jax.device_put(_host_take(slots, jax.device_put(index, HOST)), DEVICE)
    return [jax.tree.map(lambda x, i=i: x[i], taken) for i in range(index.shape[0])]


def put(slots: Any, index: Int[Array, "*new"], new: Any) -> Any:
    """Slots with new content at an index or several; one that is out of range is dropped.

    What is dropped is not written at all, where a choice between two versions would copy all slots.
    """
    if on_host(slots):
        return _host_put(slots, *jax.device_put((index, new), HOST))
    return _put(slots, index, new)


def pad(slots: Any, axis: int, missing: int) -> Any:
    """Slots with more of them, of zeros, behind."""
    return _host_pad(slots, axis, missing) if on_host(slots) else _pad(slots, axis, missing)


def _take(slots: Any, index: Array) -> Any:
    return jax.tree.map(lambda x: jnp.take(x, index, axis=0, mode="clip"), slots)


def _put(slots: Any, index: Array, new: Any) -> Any:
    return jax.tree.map(lambda x, n: x.at[index].set(n, mode="drop"), slots, new)


def _pad(slots: Any, axis: int, missing: int) -> Any:
    def one(x: Array) -> Array:
        return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])

    return jax.tree.map(one, slots)


_host_take = compute_on("device_host")(jax.jit(_take))
_host_put = compute_on("device_host")(jax.jit(_put))
_host_pad = compute_on("device_host")(jax.jit(_pad, static_argnums=(1, 2)))
