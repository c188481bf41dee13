"""What the kernels that read memories share: the call, who sees what, the router's gradient.

A grid step takes a block of tokens and a stack of memories, those that are in VMEM at a time.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mc_jax.kernels.gates import Router
from mc_jax.kernels.remat import keep
from mc_jax.kernels.tiles import contract, round_up
from mc_jax.typing import Array

F32 = jnp.float32


@dataclasses.dataclass(frozen=True)
class Call:
    """Static facts of one head's read.

    Attributes:
      tokens: queries, padded to whole blocks.
      length: queries without the padding.
      memories: cached memories.
      head_dim: width of a head, and so of what memories are scored with.
      segment_len: tokens of a segment.
      top_k: memories that a token reads; None for all that it sees.
      routed: whether reads are weighted by scores.
    """

    tokens: int
    length: int
    memories: int
    head_dim: int
    segment_len: int
    top_k: int | None
    routed: bool

    def reads(self, most: int) -> int:
        """Pairs of a token and one of the first `most` memories, if the sequence starts here."""
        return sum(
            min(most, segment) * min(self.segment_len, self.length - start)
            for segment, start in enumerate(range(0, self.length, self.segment_len))
        )


class Seen(NamedTuple):
    """How many memories, from the first on, the tokens of a block see.

    Attributes:
      each: by token [1, tokens].
      least: by the first token.
      most: by the last one.
    """

    each: Array
    least: Array
    most: Array


def seen_by(call: Call, tokens: int, first: Array, block: Array) -> Seen:
    """What the tokens of a block see; padding sees what the last token does.

    Args:
      call: the call.
      tokens: tokens of a block.
      first: segment of the first token.
      block: index of the block.
    """
    start, end = block * tokens, call.length - 1
    each = start + lax.broadcasted_iota(jnp.int32, (1, tokens), 1)

    def seen(token: Array) -> Array:
        segment = first + lax.div(jnp.minimum(token, end), call.segment_len)
        return jnp.minimum(segment, call.memories)

    return Seen(*map(seen, (each, start, start + tokens - 1)))


def of_stack(count: Array, stack: Array, resident: int) -> Array:
    """How many of the first `count` memories lie in a stack of so many."""
    return jnp.clip(count - stack * resident, 0, resident)


def last_stack(call: Call, tokens: int, resident: int, first: Array, block: Array) -> Array:
    """The last stack that a block of tokens sees anything of; none after it need be fetched."""
    seen = first + lax.div((block + 1) * tokens - 1, call.segment_len)
    return lax.div(jnp.clip(seen, 1, call.memories) - 1, resident)


def prepared(router: Router | None, rows: int) -> Router | None:
    """A router as kernels take it: logits as a line of lanes, descriptors in whole stacks."""
    if router is None:
        return None
    padding = rows - router.descriptors.shape[0]
    return router._replace(
        online=router.online[None], descriptors=jnp.pad(router.descriptors, ((0, padding), (0, 0)))
    )


def add_router_gradient(
    stack: Array,
    most: Array,
    router: Router,
    own: Array,
    gates: Any,
    dgates: Array,
    down: Array,
    mixed: Array,
    drouter: Router,
    ddescriptors: Any,
) -> None:
    """The way back through the softmax, of one block of tokens and one stack of memories.

    With `delta_t = <dy_t, y_t> + own_t down_t`: `dlogit_ti = gate_ti (dgate_ti - delta_t)` and
    `donline_t = own_t (down_t - delta_t)`.

    Args:
      stack: index of the stack.
      most: memories that the block's last token sees.
      router: refs.
      own: gates of the online memory [1, tokens].
      gates: ref of those of all memories [memories, tokens].
      dgates: gradients of the stack's gates [resident, tokens].
      down: gradients of the online memory's gates [1, tokens].
      mixed: `<dy_t, y_t>` [1, tokens].
      drouter: refs that u's and online's gradients are written to; those of u are the stack's part.
      ddescriptors: ref that the gradients of the stack's descriptors are added to.
    """
    resident, dtype = dgates.shape[0], router.u.dtype
    delta = mixed + own * down
    rows = pl.ds(pl.multiple_of(stack * resident, 8), resident)
    # What nobody sees may hold anything.
    here = of_stack(most, stack, resident)
    visible = lax.broadcasted_iota(jnp.int32, (resident, 1), 0) < here
    dlogits = jnp.where(visible, gates[rows] * (dgates - delta), 0).astype(dtype)
    descriptors = jnp.where(visible, router.descriptors[rows], 0).astype(dtype)
    drouter.u[...] = contract(descriptors, dlogits, (0, 0)).astype(drouter.u.dtype)
    drouter.online[...] = own * (down - delta)
    ddescriptors[...] += contract(dlogits, router.u[...], (1, 1))


def differentiable(forward: Callable, backward: Callable) -> Callable:
    """A read with its gradient, of the two kernels' calls.

    Args:
      forward: `forward(call, config, interpret, first, q, router, weights)` gives outputs
        [out, tokens] and the online memory's gates [1, tokens].
      backward: takes outputs, their gradients and those of the gates besides, None for what a read
        without a router has no use of; gives gradients of q, router and weights. Those of q and of
        u have an axis of stacks in front, to be summed over; those of descriptors whole stacks.

    Returns:
      A function of `forward`'s arguments; gates have no line's axis.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
    def read(call, config, interpret, first, q, router, weights):
        y, own = forward(call, config, interpret, first, q, router, weights)
        return y, own[0]

    def read_forward(call, config, interpret, first, q, router, weights):
        y, own = read(call, config, interpret, first, q, router, weights)
        (y,) = keep(y)
        # Nothing else is kept: the gates are cheaper to compute again than to store.
        return (y, own), (first, q, router, weights, y if call.routed else None)

    def read_backward(call, config, interpret, residuals, cotangents):
        first, q, router, weights, y = residuals
        dy, down = cotangents
        down = down[None] if call.routed else None
        dq, drouter, dweights = backward(
            call, config, interpret, first, q, router, weights, y, dy, down
        )
        if router is not None:
            drouter = Router(
                _total(drouter.u, router.u), drouter.online[0], drouter.descriptors[: call.memories]
            )
        return None, _total(dq, q), drouter, dweights

    read.defvjp(read_forward, read_backward)
    return read


def read_in_blocks(
    read: Callable,
    call: Call,
    config: Any,
    interpret: bool,
    first_segment: Array | int,
    q: Array,
    router: Router | None,
    weights: Any,
) -> tuple[Array, Array]:
    """Pad a call's tokens to whole blocks, and read memories in the type of the queries.

    Args:
      read: what `differentiable` returned.
      call: the call, whatever its padded `tokens`.
      config: its blocks, of `config.tokens`.
      interpret: run the kernel's steps on any device.
      first_segment: segment of the first token.
      q: queries [in, length].
      router: what memories are scored with.
      weights: cached memories.

    Returns:
      Outputs [out, length] and the online memory's gates [length].
    """
    tokens = round_up(call.length, config.tokens)

    def pad(x: Array) -> Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, tokens - call.length)])

    if router is not None:
        router = Router(
            pad(router.u.astype(q.dtype)),
            pad(router.online.astype(F32)),
            router.descriptors.astype(F32),
        )
    weights = jax.tree.map(lambda w: w.astype(q.dtype), weights)
    first = jnp.asarray(first_segment, jnp.int32).reshape(1)
    call = dataclasses.replace(call, tokens=tokens)
    y, own = read(call, config, interpret, first, pad(q), router, weights)
    return y[:, : call.length], own[: call.length]


def _total(parts: Array, like: Array) -> Array:
    """The sum over stacks of memories."""
    return (parts[0] if parts.shape[0] == 1 else jnp.sum(parts, 0)).astype(like.dtype)
