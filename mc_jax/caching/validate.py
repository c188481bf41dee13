"""Checks of the core's arrays, before any compute is spent."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mc_jax.caching.cache import Cache
from mc_jax.caching.options import Options
from mc_jax.caching.placement import on_host
from mc_jax.errors import InputError
from mc_jax.memory import DeepParams
from mc_jax.memory.linear import LinearGates, SWLAGates
from mc_jax.memory.network import MlpNetwork
from mc_jax.memory.rule import Rule
from mc_jax.typing import Array


def check_arrays(
    options: Options,
    rule: Rule,
    q: Array,
    k: Array,
    v: Array,
    u: Array | None,
    gates: Any,
    params: DeepParams | None,
) -> None:
    """Refuse arrays that do not fit each other or the options.

    Raises:
      InputError: naming the argument.
    """
    if q.ndim != 4 or 0 in q.shape:
        raise InputError("q", q.shape, "[batch, length, heads, head_dim], none of them 0")
    if not jnp.issubdtype(q.dtype, jnp.floating):
        raise InputError("q", str(q.dtype), "a floating type")
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape or x.dtype != q.dtype:
            raise InputError(name, _describe(x), f"{_describe(q)}, as q")
    _check_router(options, q, u)
    _check_gates(rule, q, gates)
    _check_params(rule, q, params)


def check_lengths(q: Array, lengths: Any) -> None:
    """Refuse numbers of tokens that do not fit the call's.

    Raises:
      InputError: naming the argument.
    """
    if lengths is None:
        return
    batch, most = q.shape[:2]
    allowed = f"integers from 0 to {most}, one or [{batch}]"
    if jnp.shape(lengths) not in ((), (batch,)) or not jnp.issubdtype(
        jnp.result_type(lengths), jnp.integer
    ):
        raise InputError("lengths", lengths, allowed)
    if isinstance(lengths, jax.core.Tracer):
        return
    values = np.asarray(lengths)
    if values.min() < 0 or values.max() > most:
        raise InputError("lengths", values.tolist(), allowed)


def _describe(x: Array) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _check_router(options: Options, q: Array, u: Array | None) -> None:
    if not options.gated:
        return
    if options.gate == "context" and (u is None or u.shape != q.shape):
        found = None if u is None else u.shape
        raise InputError("u", found, f"router queries {q.shape} for gate='context'")
    if options.gate == "shared_query" and u is not None and u.shape != q.shape[2:3]:
        allowed = f"None or a temperature for each head {q.shape[2:3]} for gate='shared_query'"
        raise InputError("u", u.shape, allowed)
    if options.gate == "position" and (
        u is None or u.ndim != 4 or u.shape[:3] != q.shape[:3] or not u.shape[3]
    ):
        found = None if u is None else u.shape
        raise InputError("u", found, f"scores {q.shape[:3]} + (distances,) for gate='position'")


def _check_gates(rule: Rule, q: Array, gates: Any) -> None:
    expected: Any = rule.gates_type
    if gates is None and expected is LinearGates:
        return
    if not isinstance(gates, expected):
        allowed = expected.__name__ + (" or None" if expected is LinearGates else "")
        raise InputError("gates", type(gates).__name__, allowed)
    for name, gate in gates._asdict().items():
        if gate is None and name == "alpha":
            continue
        windowed = isinstance(gates, SWLAGates) and name == "beta" and getattr(gate, "ndim", 0) == 4
        if gate is None or gate.shape[: 3 if windowed else None] != q.shape[:3]:
            found = None if gate is None else gate.shape
            raise InputError(f"gates.{name}", found, f"[batch, length, heads] = {q.shape[:3]}")


def _check_params(rule: Rule, q: Array, params: DeepParams | None) -> None:
    network = rule.network
    if not isinstance(network, MlpNetwork):
        if params is not None:
            raise InputError("params", type(params).__name__, "None for a matrix memory")
        return
    if not isinstance(params, DeepParams):
        raise InputError("params", type(params).__name__, "DeepParams for an MLP memory")
    heads, width = q.shape[2:]
    hidden = params.w1.shape[-1]
    for name, x, shape in (
        ("w1", params.w1, (heads, width, hidden)),
        ("w2", params.w2, (heads, hidden, width)),
    ):
        if x.shape != shape:
            raise InputError(f"params.{name}", x.shape, f"{shape}")
    if (network.mem_norm == "layer") != (params.norm is not None):
        found = "None" if params.norm is None else "NormParams"
        allowed = "NormParams" if params.norm is None else "None"
        raise InputError("params.norm", found, f"{allowed} for mem_norm={network.mem_norm!r}")
    for name, x in (params.norm._asdict() if params.norm is not None else {}).items():
        if x.shape != (heads, width):
            raise InputError(f"params.norm.{name}", x.shape, f"{(heads, width)}")


def check_cache(options: Options, expected: Cache, cache: Cache) -> None:
    """Refuse a cache that another configuration made.

    Args:
      options: static options of the call.
      expected: shapes of a cache of this configuration with the same room.
      cache: the cache to go on from.

    Raises:
      InputError: naming the first part that differs.
    """
    leaves = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(cache)}
    wanted = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(expected)}
    for path in sorted(leaves.keys() ^ wanted.keys()):
        side = "nothing there" if path in wanted else "an array"
        other = "an array" if path in wanted else "nothing there"
        raise InputError(
            f"initial_cache{path}", side, f"{other}: the cache of a call with the same options"
        )
    for path, x in leaves.items():
        if x.shape != wanted[path].shape or x.dtype != wanted[path].dtype:
            raise InputError(
                f"initial_cache{path}", _describe(x), f"{_describe(wanted[path])} for this call"
            )
    if options.segmentation == "logarithmic" and on_host(cache.memories):
        raise InputError(
            "initial_cache.memories",
            "memories in the host's memory",
            'memories on the device: segmentation="logarithmic" keeps few, and reads them all',
        )
