"""Matrix memories: linear attention and sliding-window linear attention (SWLA)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mc_jax.memory.chunk import Coefficients, EndCoefficients, Factors
from mc_jax.memory.decay import decay_products, log_decay
from mc_jax.memory.network import MatrixNetwork, MatrixWeights
from mc_jax.memory.rule import State, register
from mc_jax.typing import Array, Float


class LinearGates(NamedTuple):
    """Gate of decayed linear attention; pass None instead for no decay.

    Attributes:
      alpha: retention in (0, 1].
    """

    alpha: Float[Array, "batch length heads"]


class SWLAGates(NamedTuple):
    """Gates of sliding-window linear attention (eqs. 26 and 28).

    Attributes:
      alpha: retention in (0, 1].
      beta: weight with which the token written i steps back is written again, i = 1..c-1 on the
        last axis; without that axis the window c is 2.
      lam: weight of the token's own write.
    """

    alpha: Float[Array, "batch length heads"]
    beta: Float[Array, "batch length heads *window"]
    lam: Float[Array, "batch length heads"]


class Writes(NamedTuple):
    """Gates with logs taken; `scale[i]` is the weight of the token i steps back."""

    log_alpha: Float[Array, " length"]
    scale: Float[Array, "window length"]


@dataclasses.dataclass(frozen=True)
class MatrixRule:
    """`M_t = alpha_t M_{t-1} + sum_{i<c} scale_t[i] v_{t-i} k_{t-i}ᵀ`, read as `M q`.

    Linear attention is c = 1 with scale 1. The gradient of `-<M k, v>` is `-v kᵀ` whatever M is,
    so there is no anchor, and chunks are only a way to compute.
    """

    gates_type: type

    network = MatrixNetwork()
    merges = True
    amplifies = False

    def window(self, gates: Any) -> int:
        """c - 1, read off beta's last axis."""
        if not isinstance(gates, SWLAGates):
            return 0
        return 1 if gates.beta.ndim == gates.alpha.ndim else gates.beta.shape[-1]

    def initial_state(self, params: Any, head_dim: int, window: int, dtype: jnp.dtype) -> State:
        """Zeros: a matrix that holds nothing and `window` tokens to look back on."""
        tokens = jnp.zeros((head_dim, window), dtype)
        return State(
            MatrixWeights(jnp.zeros((head_dim, head_dim), dtype)),
            window=(tokens, tokens),
            log_decay=jnp.zeros((), dtype),
        )

    def prepare(self, gates: Any, valid: Array, dtype: jnp.dtype) -> Writes:
        """Log retention and write weights; both neutral where a token is padding."""
        if gates is None:
            return Writes(jnp.zeros(valid.shape, dtype), valid[None].astype(dtype))
        scale = jnp.ones((1, *valid.shape), dtype)
        if isinstance(gates, SWLAGates):
            own, back = gates.lam.astype(dtype), gates.beta.astype(dtype)
            scale = jnp.concatenate([own[None], back.reshape(-1, *valid.shape)])
        return Writes(log_decay(gates.alpha, valid, dtype), jnp.where(valid, scale, 0))

    def coefficients(self, prepared: Writes) -> tuple[Coefficients, EndCoefficients]:
        """`G(t, j) = sum_i A(t, j+i) scale_{j+i}[i]`, from `window` tokens before the chunk on."""
        total, products = decay_products(prepared.log_alpha)
        window, log_weights = prepared.scale.shape[0] - 1, None
        if not window:
            grads = products * prepared.scale[0][:, None]
        else:
            # Token m = j + i writes token j, i steps back: row m - i, counted from -window.
            written = [
                jnp.pad(products * prepared.scale[i][:, None], ((window - i, i), (0, 0)))
                for i in range(window + 1)
            ]
            grads = jnp.sum(jnp.stack(written), 0)
        log_total = jnp.sum(prepared.log_alpha)
        if self.gates_type is LinearGates:
            # Padding has a weight of 0, but comes after every token that is there.
            log_weights = jnp.cumsum(prepared.log_alpha)
        coefficients = Coefficients(total, grads, log_weights=log_weights)
        return coefficients, EndCoefficients(total[-1], grads[:, -1], log_total)

    def factors(self, params: Any, state: State, k: Array, v: Array) -> Factors:
        """Gradient `-v kᵀ` of `-<M k, v>` for the window's tokens and the chunk's."""
        old_k, old_v = (x.astype(k.dtype) for x in state.window)
        keys, values = jnp.concatenate([old_k, k], 1), jnp.concatenate([old_v, v], 1)
        return Factors({"w": -values}, {"w": keys})

    def step(self, params: Any, state: State, k: Array, v: Array, gates: Any) -> State:
        """One token of eq. 26."""
        dtype = state.log_decay.dtype
        one = jax.tree.map(lambda gate: gate[..., None], gates)
        writes = self.prepare(one, jnp.ones((1,), bool), dtype)
        keys = jnp.concatenate([state.window[0], k.astype(dtype)], 1)
        values = jnp.concatenate([state.window[1], v.astype(dtype)], 1)
        write = (values * writes.scale[::-1, 0]) @ keys.T
        log_alpha = writes.log_alpha[0]
        return state._replace(
            weights=jax.tree.map(lambda w: jnp.exp(log_alpha) * w + write, state.weights),
            window=(keys[:, 1:], values[:, 1:]),
            log_decay=state.log_decay + log_alpha,
        )

    def end_chunk(self, params: Any, state: State) -> State:
        """Nothing happens to a matrix at the end of a chunk."""
        return state


register("linear", lambda mem_norm, activation: MatrixRule(LinearGates))
register("swla", lambda mem_norm, activation: MatrixRule(SWLAGates))
