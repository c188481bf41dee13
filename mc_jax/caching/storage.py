"""The form in which cached memories are kept: of which type, and in which memory of the machine.

Both are seen from a cache's arrays, so a cache says how it goes on: what is cached takes the form
of what is there. `store` changes it. States that are still written, descriptors and everything
that is computed keep their types.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mc_jax.caching.cache import Cache
from mc_jax.caching.placement import DEVICE, HOST, fetch
from mc_jax.errors import InputError
from mc_jax.memory.network import Weights
from mc_jax.typing import Array, Float, Int

FORMS = ("float32", "bfloat16", "int8")


class Rounded(NamedTuple):
    """A matrix as 8-bit integers, each row with a scale.

    Attributes:
      values: from -127 to 127.
      scale: of 1 in `values`.
    """

    values: Int[Array, "*slots rows columns"]
    scale: Float[Array, "*slots rows"]


def store(cache: Cache, form: str, host: bool = False) -> Cache:
    """A cache that keeps its memories, those to come included, in another form.

    Tokens read the rounded memories from then on; but with logarithmic segments a call on several
    tokens reads those that end within it as they are computed.

    Args:
      cache: what `mc_jax.memory_caching` returned.
      form: float32 | bfloat16 | int8 (with a float32 scale for each row of a matrix). What was
        lost in rounding does not come back.
      host: keep them in the host's memory (`pinned_host`). With aggregation="ssc" decoding then
        fetches the memories that a token reads; everything else fetches all of a layer's for the
        time of its call. Not with logarithmic segments.

    Raises:
      InputError: a form that does not exist.
    """
    if form not in FORMS:
        raise InputError("form", form, " | ".join(FORMS))
    if cache.memories is None:
        return cache
    weights = as_floats(fetch(cache.memories.weights), jnp.dtype("float32"))
    weights = jax.device_put(_in_form(form, weights), HOST if host else DEVICE)
    return cache._replace(memories=cache.memories._replace(weights=weights))


def form_of(stored: Weights) -> str:
    """The form of stored memories: one of FORMS, or float64."""
    if any(_is_rounded(x) for x in jax.tree.leaves(stored, is_leaf=_is_rounded)):
        return "int8"
    return str(jax.tree.leaves(stored)[0].dtype)


def as_stored(stored: Weights, weights: Weights) -> Weights:
    """Weights in the form of others that are stored."""
    return _in_form(form_of(stored), weights)


def as_floats(stored: Weights, dtype: jnp.dtype) -> Weights:
    """What stored memories stand for."""

    def one(x: Any) -> Array:
        if isinstance(x, Rounded):
            return x.values.astype(dtype) * x.scale[..., None].astype(dtype)
        return x.astype(dtype)

    return jax.tree.map(one, stored, is_leaf=_is_rounded)


def _is_rounded(x: Any) -> bool:
    return isinstance(x, Rounded)


def _in_form(form: str, weights: Weights) -> Weights:
    if form != "int8":
        return jax.tree.map(lambda x: x.astype(form), weights)

    def rounded(x: Array) -> Rounded:
        scale = jnp.max(jnp.abs(x), -1) / 127
        values = jnp.round(x / jnp.where(scale > 0, scale, 1)[..., None])
        return Rounded(values.astype(jnp.int8), scale)

    return jax.tree.map(rounded, weights)
