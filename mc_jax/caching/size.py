"""How much memory decoding takes, beside attention's."""

from typing import Any

import jax
import jax.numpy as jnp

from mc_jax.caching.cache import Cache, empty_cache
from mc_jax.caching.options import Options
from mc_jax.caching.segments import capacity_for
from mc_jax.caching.storage import store
from mc_jax.errors import InputError
from mc_jax.memory import DeepParams, get_rule
from mc_jax.memory.network import accumulator


def state_size(
    length: int,
    *,
    rule: str = "linear",
    heads: int,
    head_dim: int,
    expansion: int = 4,
    window: int = 2,
    aggregation: str = "grm",
    segment_len: int = 256,
    segmentation: str = "constant",
    write_mode: str = "independent",
    gate: str = "context",
    top_k: int = 4,
    chunk_len: int = 64,
    route_every: int = 1,
    dtype: str = "bfloat16",
    form: str | None = None,
) -> int:
    """Bytes that one sequence's cache holds after `length` tokens, in one layer.

    Exactly the arrays of the cache that `mc_jax.memory_caching` returns with these options.

    Args:
      length: tokens read.
      rule: update rule.
      heads: heads.
      head_dim: width of a head.
      expansion: hidden width of an MLP memory over `head_dim`.
      window: c of swla.
      aggregation: as in `memory_caching`, and so the rest.
      segment_len: tokens of a segment.
      segmentation: constant | logarithmic.
      write_mode: independent | checkpoint.
      gate: gate.
      top_k: has no influence: every memory is kept to be selected from.
      chunk_len: tokens of a chunk.
      route_every: of ssc, tokens that select memories together.
      dtype: type of queries, keys and values; states are float32, or float64 beside float64.
      form: what `mc_jax.store` keeps memories in: float32 | bfloat16 | int8; None for as they are.

    Raises:
      InputError: an option that is not allowed.
    """
    _check_counts(0, length=length)
    _check_counts(1, heads=heads, head_dim=head_dim, expansion=expansion, window=window)
    options = Options(
        *(aggregation, segment_len, segmentation, write_mode, gate, top_k, chunk_len),
        route_every=route_every,
    )
    capacity = capacity_for(length, segment_len, segmentation) if options.caches else 0
    the_rule = get_rule(rule)
    state_dtype = accumulator(jnp.dtype(dtype))
    hidden = expansion * head_dim
    params: Any = None
    if not the_rule.network.is_linear:
        w1: Any = jax.ShapeDtypeStruct((head_dim, hidden), state_dtype)
        w2: Any = jax.ShapeDtypeStruct((hidden, head_dim), state_dtype)
        params = DeepParams(w1, w2)
    back = window - 1 if rule == "swla" else 0

    def one(params: DeepParams | None) -> Cache:
        cache = empty_cache(the_rule, options, params, head_dim, back, state_dtype, capacity)
        return cache if form is None else store(cache, form)

    cache = jax.eval_shape(one, params)
    position = cache.position
    per_head = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    counter = position.size * position.dtype.itemsize
    return heads * (per_head - counter) + counter


def kv_cache_size(length: int, *, heads: int, head_dim: int, dtype: str = "bfloat16") -> int:
    """Bytes of the keys and values that one layer of softmax attention keeps of `length` tokens.

    Raises:
      InputError: a number that is not allowed.
    """
    _check_counts(0, length=length)
    _check_counts(1, heads=heads, head_dim=head_dim)
    return 2 * length * heads * head_dim * jnp.dtype(dtype).itemsize


def _check_counts(least: int, **counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(name, value, f"an integer >= {least}")
