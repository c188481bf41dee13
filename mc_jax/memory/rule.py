"""What an update rule is, and the registry that finds one by name.

A rule knows nothing of caching. It is written for one head of one sequence and vmapped outside.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mc_jax.errors import InputError
from mc_jax.memory.chunk import Chunk, Coefficients, EndCoefficients, Factors, advance
from mc_jax.memory.network import Network, Weights
from mc_jax.typing import Array, Float


class State(NamedTuple):
    """The running recurrence of one head, in float32 (float64 for float64 inputs).

    Attributes:
      weights: the memory's weights after the last token.
      momentum: Titans' momentum S; None for rules without.
      anchor: weights at the start of the running chunk, at which inner gradients are taken; None
        for rules whose gradients do not depend on the weights.
      window: the last keys and values that a sliding-window write still needs; None without.
      log_decay: log of the retention since the segment's start, by which older memories decay
        when two are merged; None for rules that do not merge.
    """

    weights: Weights
    momentum: Weights | None = None
    anchor: Weights | None = None
    window: tuple[Float[Array, "head_dim window"], ...] | None = None
    log_decay: Float[Array, ""] | None = None


class Rule(Protocol):
    """How a segment is compressed into a memory."""

    @property
    def gates_type(self) -> type | None:
        """The NamedTuple of this rule's gates."""
        ...

    @property
    def network(self) -> Network:
        """The memory as a function of its linear maps."""
        ...

    @property
    def merges(self) -> bool:
        """Whether the memories of two neighbouring segments add up to that of both."""
        ...

    @property
    def amplifies(self) -> bool:
        """Whether rounding grows with the tokens that a memory has taken in."""
        ...

    def window(self, gates: Any) -> int:
        """Tokens before the running one that a write looks back on."""
        ...

    def initial_state(self, params: Any, head_dim: int, window: int, dtype: jnp.dtype) -> State:
        """State before the first token."""
        ...

    def prepare(self, gates: Any, valid: Float[Array, " length"], dtype: jnp.dtype) -> Any:
        """Gates as `coefficients` wants them; a token that is not valid changes nothing."""
        ...

    def coefficients(self, prepared: Any) -> tuple[Coefficients, EndCoefficients]:
        """What one chunk's gates make of its start and gradients: at each token, and at its end."""
        ...

    def factors(self, params: Any, state: State, k: Array, v: Array) -> Factors:
        """Inner gradients of one chunk's tokens."""
        ...

    def step(self, params: Any, state: State, k: Array, v: Array, gates: Any) -> State:
        """The recurrence for one token `k`, `v` [head_dim, 1], as printed; gates are scalars."""
        ...

    def end_chunk(self, params: Any, state: State) -> State:
        """State with which the next chunk starts."""
        ...


def norm_of(params: Any) -> Any:
    """The memory norm's affine, None for memories without parameters."""
    return None if params is None else params.norm


def select(condition: Array, on_true: Any, on_false: Any) -> Any:
    """`jnp.where` over two trees of one structure."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), on_true, on_false)


def chunk_step(
    rule: Rule,
    params: Any,
    state: State,
    end: EndCoefficients,
    k: Float[Array, "head_dim chunk"],
    v: Float[Array, "head_dim chunk"],
    complete: Array,
) -> tuple[State, Factors]:
    """Compress one chunk.

    Args:
      rule: the update rule.
      params: its learned parts.
      state: state before the chunk's first token. `anchor=None` says that the chunk starts at
        `state.weights`, which spares a copy of the weights.
      end: the second of `rule.coefficients`.
      k: keys, in the type that matmuls run in.
      v: values.
      complete: whether the chunk's last token is there.

    Returns:
      State after the chunk, and the gradients of its tokens.
    """
    factors = rule.factors(params, state, k, v)
    chunk = Chunk(state.weights, state.momentum, factors)
    weights, momentum = advance(chunk, end, k.dtype)
    window, log_decay = state.window, state.log_decay
    if window is not None:
        window = tuple(
            jnp.concatenate([old, new], 1)[:, new.shape[1] :]
            for old, new in zip(window, (k, v), strict=True)
        )
    if log_decay is not None:
        log_decay = log_decay + end.log_decay
    state = State(weights, momentum, state.anchor, window, log_decay)
    return select(complete, rule.end_chunk(params, state), state), factors


_RULES: dict[str, Callable[[str, str], Rule]] = {}


def register(name: str, build: Callable[[str, str], Rule]) -> None:
    """Make a rule known under `name`; `build(mem_norm, activation)` returns it."""
    _RULES[name] = build


def rule_names() -> tuple[str, ...]:
    """Names that `get_rule` knows."""
    return tuple(_RULES)


def get_rule(name: str, *, mem_norm: str = "layer", activation: str = "gelu") -> Rule:
    """The rule of that name.

    Args:
      name: one of `rule_names()`.
      mem_norm: norm of an MLP memory; matrix memories have none.
      activation: activation of an MLP memory.

    Raises:
      InputError: no such rule, norm or activation.
    """
    if name not in _RULES:
        raise InputError("rule", name, " | ".join(_RULES))
    return _RULES[name](mem_norm, activation)
