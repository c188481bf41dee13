"""Gates of cached memories: what a read scores them with, and the weights that follow.

A token reads memory i if i lies before its own segment. Its weights are the softmax over the
online memory's logit and those of the memories it sees, or of the `top_k` best of these (eqs. 9,
10 and 17).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mc_jax.device import on_gpu
from mc_jax.errors import InputError
from mc_jax.kernels.best_memories import best_memories, largest
from mc_jax.kernels.columns import column_sums, inner
from mc_jax.kernels.scores import score
from mc_jax.typing import Array, Bool, Float, Int


class Router(NamedTuple):
    """What one head's tokens score memories with.

    Attributes:
      u: router queries; the logit of memory i is `<u_t, descriptors_i>`.
      online: logits of the online memory, float32.
      descriptors: mean keys of the cached segments, float32.
    """

    u: Float[Array, "head_dim tokens"]
    online: Float[Array, " tokens"]
    descriptors: Float[Array, "memories head_dim"]

    def cut(self, tokens: slice, memories: int) -> "Router":
        """For some tokens and the first memories."""
        return Router(self.u[:, tokens], self.online[tokens], self.descriptors[:memories])


class Scores(NamedTuple):
    """Logits that come from elsewhere, as those by position do.

    Attributes:
      online: logits of the online memory, float32.
      cached: logits of the cached memories, float32.
    """

    online: Float[Array, " tokens"]
    cached: Float[Array, "memories tokens"]

    def cut(self, tokens: slice, memories: int) -> "Scores":
        """For some tokens and the first memories."""
        return Scores(self.online[tokens], self.cached[:memories, tokens])


def check_router(
    router: Router | Scores | None, memories: int, tokens: int, segment_len: int, top_k: int | None
) -> None:
    """Check what a read of so many memories by so many tokens is given.

    Raises:
      InputError: naming the argument of `linear_read` and `deep_read`.
    """
    if segment_len < 1:
        raise InputError("segment_len", segment_len, "at least 1")
    if top_k is not None and top_k < 1:
        raise InputError("top_k", top_k, "at least 1, or None for all")
    shapes: dict[str, tuple[int, ...]] = {}
    if router is not None:
        shapes["online"] = (tokens,)
    if isinstance(router, Router):
        shapes |= {"u": (router.u.shape[0], tokens), "descriptors": (memories, router.u.shape[0])}
    if isinstance(router, Scores):
        shapes["cached"] = (memories, tokens)
    for name, shape in shapes.items():
        found = getattr(router, name).shape
        if found != shape:
            raise InputError(f"router.{name}.shape", found, str(shape))


def visible_memories(
    memories: int, tokens: int, segment_len: int, first_segment: Int[Array, ""] | int
) -> Bool[Array, "memories tokens"]:
    """Whether memory i lies before the segment of token t, `first_segment + t // segment_len`."""
    segment = first_segment + jnp.arange(tokens) // segment_len
    return jnp.arange(memories)[:, None] < segment


def softmax_gates(
    online: Float[Array, " tokens"],
    cached: Float[Array, "memories tokens"],
    visible: Bool[Array, "memories tokens"],
    top_k: int | None = None,
    ranked: Float[Array, "memories tokens"] | None = None,
) -> tuple[Float[Array, " tokens"], Float[Array, "memories tokens"]]:
    """Weights of the online memory and of the cached ones, 0 for one that is not read.

    Args:
      online: logits of the online memory.
      cached: logits of the cached memories.
      visible: which of them a token may read.
      top_k: how many of them it reads, best first; None for all. Of equal logits the older
        memory's comes first.
      ranked: logits by which the best are found, where they are not those that weigh.
    """
    cached = jnp.where(visible, cached, -jnp.inf)
    ranked = cached if ranked is None else jnp.where(visible, ranked, -jnp.inf)
    memories = cached.shape[0]
    if top_k is not None and top_k < memories:
        _, best = largest(ranked, top_k)
        selected = jnp.any(best[:, None] == jnp.arange(memories)[:, None], 0)
        cached = jnp.where(selected, cached, -jnp.inf)
    return softmax_beside(online, cached)


def softmax_beside(
    online: Float[Array, " tokens"], cached: Float[Array, "memories tokens"]
) -> tuple[Float[Array, " tokens"], Float[Array, "memories tokens"]]:
    """The softmax over both, without putting them into one array; in float32 or more."""
    dtype = jnp.promote_types(jnp.promote_types(online.dtype, cached.dtype), jnp.float32)
    return _softmax_beside(online.astype(dtype), cached.astype(dtype))


@jax.custom_vjp
def _softmax_beside(online: Array, cached: Array) -> tuple[Array, Array]:
    highest = jnp.maximum(online, jnp.max(cached, 0, initial=-jnp.inf))
    own, others = jnp.exp(online - highest), jnp.exp(cached - highest)
    total = own + column_sums(others)
    return own / total, others / total


def _softmax_backward(gates: tuple[Array, Array], dgates: tuple[Array, Array]) -> tuple:
    own, others = gates
    down, dothers = dgates
    mixed = own * down + inner(others, dothers)
    return own * (down - mixed), others * (dothers - mixed)


def _softmax_forward(online: Array, cached: Array) -> tuple[tuple, tuple]:
    gates = _softmax_beside(online, cached)
    return gates, gates


_softmax_beside.defvjp(_softmax_forward, _softmax_backward)


def read_gates(
    router: Router | Scores | None,
    visible: Bool[Array, "memories tokens"],
    top_k: int | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> tuple[Float[Array, " tokens"], Float[Array, "memories tokens"]]:
    """Weights of the online and the cached memories; without a router all are 1.

    Args:
      router: what memories are scored with.
      visible: which of them a token may read.
      top_k: see `softmax_gates`.
      dtype: type of the queries; weights are in float32, or in float64 beside float64.
    """
    if router is None:
        dtype = jnp.promote_types(dtype, jnp.float32)
        return jnp.ones(visible.shape[1], dtype), visible.astype(dtype)
    # A GPU's TensorFloat-32 is finer than queries in bfloat16, and memories are weighed alone.
    exact = top_k is not None or dtype != jnp.bfloat16 or not on_gpu()
    return softmax_gates(router.online, cached_logits(router, exact), visible, top_k)


def selected_gates(
    router: Router | Scores,
    visible: Bool[Array, "memories tokens"],
    top_k: int,
    segment_len: int | None = None,
) -> tuple[Float[Array, " tokens"], Float[Array, "top_k tokens"], Int[Array, "top_k tokens"]]:
    """Weights of the online memory and of the `top_k` best cached ones, and which these are.

    The weights are those of `softmax_gates`. A token that sees fewer has weight 0 for the rest,
    and memory number `memories`; `segment_len` is that of `best_memories`.
    """
    if isinstance(router, Router):
        best, memory = best_memories(top_k, router.u, router.descriptors, visible, segment_len)
    else:
        logits = jnp.where(visible, router.cached, -jnp.inf)
        highest, memory = largest(logits, top_k)
        there = highest != -jnp.inf
        best = jnp.where(there, jnp.take_along_axis(logits, memory, 0), -jnp.inf)
        memory = jnp.where(there, memory, visible.shape[0])
    own, weights = softmax_beside(router.online, best)
    return own, weights, memory


def cached_logits(router: Router | Scores, exact: bool = True) -> Float[Array, "memories tokens"]:
    """`<u_t, descriptor_i>`, in the type of the descriptors, or the logits that are given.

    Args:
      router: what memories are scored with.
      exact: whether not to round on the way, as matrix units do.
    """
    if isinstance(router, Scores):
        return router.cached
    if exact:
        return score("md,dt->mt", router.descriptors, router.u)
    return router.descriptors @ router.u.astype(router.descriptors.dtype)
