"""The state that arrives at a device, of a recurrence that goes on over several.

Matrix memories add up: every device takes its state out of what each one before has added. MLP
memories have to wait for each other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mc_jax.caching.cache import Cache
from mc_jax.caching.context import Context
from mc_jax.caching.segments import Grid
from mc_jax.caching.write import write_segments
from mc_jax.memory.network import DeepParams
from mc_jax.memory.rule import Rule, State
from mc_jax.typing import Array

Final = Callable[[State], State]


def arriving_state(
    rule: Rule,
    grid: Grid,
    params: DeepParams | None,
    k: Array,
    v: Array,
    gates: Any,
    cache: Cache,
) -> State:
    """State before the first token of this device, of a recurrence that goes on over all.

    Args:
      rule: update rule.
      grid: where this device's tokens lie, with its `context`.
      params: learned parts of the rule.
      k: keys [head_dim, length].
      v: values [head_dim, length].
      gates: the rule's gates, leaves [..., length].
      cache: an empty one.
    """
    context, state = grid.context, cache.state
    assert context is not None
    if state.window is not None:
        size = state.window[0].shape[1]
        tails = tuple(x[:, x.shape[1] - size :] for x in (k, v))
        state = state._replace(window=context.from_before(tails))

    def final(state: State) -> State:
        started = cache._replace(state=state)
        return write_segments(rule, grid, params, k, v, gates, started)[0].final

    return (_sum_before if rule.merges else _wait)(context, final, state)


def _sum_before(context: Context, final: Final, state: State) -> State:
    """Matrices: `M = sum_j (product of the decays after device j) M_j`."""
    own = final(state)
    parts = context.gather(jax.tree.map(lambda x: x[None], (own.weights, own.log_decay)))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        (weights, log_decay), index = part
        keep = jnp.exp(log_decay)
        after = jax.tree.map(lambda t, w: keep * t + w, total, weights)
        before = index < context.index
        return jax.tree.map(lambda a, t: jnp.where(before, a, t), after, total), None

    weights, _ = lax.scan(add, state.weights, (parts, jnp.arange(context.size)))
    return state._replace(weights=weights)


def _wait(context: Context, final: Final, state: State) -> State:
    """MLPs: each device takes the state of the one before, in turn."""
    state = state._replace(anchor=None)
    once = jax.checkpoint(lambda state: final(state)._replace(anchor=None))

    def hop(state: State, turn: Array) -> tuple[State, None]:
        after = lax.cond(context.index == turn, once, lambda state: state, state)
        arrived = context.from_before(after)
        mine = context.index == turn + 1
        return jax.tree.map(lambda a, s: jnp.where(mine, a, s), arrived, state), None

    return lax.scan(hop, state, jnp.arange(context.size - 1))[0]
