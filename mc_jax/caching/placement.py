"""Slots of cached memories in the device's memory or in the host's, whichever they lie in.

The type of an array says where it lies. What lies in the host's memory is read and written by the
host, so that only the slots in question travel; no slot is copied to change another one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import compute_on

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
    taken = _host_take(slots, jax.device_put(index, HOST))
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


# jax 0.11 has under the old name what jax 0.10 calls compute_on2.
_by_host = functools.partial(
    getattr(compute_on, "compute_on2", compute_on.compute_on), compute_type="device_host"
)
_host_take = jax.jit(_by_host(_take, out_memory_spaces=DEVICE))
_host_put = jax.jit(_by_host(_put, out_memory_spaces=HOST))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _host_pad(slots: Any, axis: int, missing: int) -> Any:
    return _by_host(lambda slots: _pad(slots, axis, missing), out_memory_spaces=HOST)(slots)
