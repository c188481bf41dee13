"""MLP memories: deep linear attention (DLA) and Titans."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mc_jax.memory.chunk import Coefficients, EndCoefficients, Factors, gradient_factors
from mc_jax.memory.decay import decay_products, log_decay
from mc_jax.memory.network import MlpNetwork, MlpWeights, forward, linear_of
from mc_jax.memory.rule import State, norm_of, register
from mc_jax.typing import Array, Float


class DLAGates(NamedTuple):
    """Gates of deep linear attention (eq. 30).

    Attributes:
      eta: step size of the inner gradient descent, >= 0.
      alpha: retention in (0, 1]; None for no decay.
    """

    eta: Float[Array, "batch length heads"]
    alpha: Float[Array, "batch length heads"] | None = None


class TitansGates(NamedTuple):
    """Gates of Titans (eqs. 34 and 35, with the sign of a descent).

    Attributes:
      alpha: retention of the weights in (0, 1].
      beta: retention of the momentum in (0, 1].
      eta: step size of the inner gradient descent, >= 0.
    """

    alpha: Float[Array, "batch length heads"]
    beta: Float[Array, "batch length heads"]
    eta: Float[Array, "batch length heads"]


class Steps(NamedTuple):
    """Gates with logs taken, neutral for padding.

    `applied` is 1 where the momentum is added to the weights: a padding token leaves both alone.
    """

    log_alpha: Float[Array, " length"]
    eta: Float[Array, " length"]
    log_beta: Float[Array, " length"] | None
    applied: Float[Array, " length"] | None


def dot_product_loss(y: Array, v: Array) -> Array:
    """`-<M(k), v>`, DLA's inner loss."""
    return -jnp.sum(y * v.astype(y.dtype), -2)


def squared_error(y: Array, v: Array) -> Array:
    """`|M(k) - v|²`, Titans' inner loss; its gradient keeps the factor 2."""
    return jnp.sum((y - v.astype(y.dtype)) ** 2, -2)


_LOSSES = {DLAGates: dot_product_loss, TitansGates: squared_error}


@dataclasses.dataclass(frozen=True)
class DeepRule:
    """Gradient descent on an MLP memory's weights, with momentum for Titans.

    DLA: `W_t = alpha_t W_{t-1} - eta_t g_t`. Titans: `S_t = beta_t S_{t-1} - eta_t g_t`,
    `W_t = alpha_t W_{t-1} + S_t`. The gradient g_t is taken at the weights of the chunk's start.
    """

    gates_type: type
    network: MlpNetwork

    merges = False

    @property
    def amplifies(self) -> bool:
        """DLA's: when its first weights have decayed, rounding is much of what feeds the rest."""
        return self.gates_type is DLAGates

    def window(self, gates: Any) -> int:
        """A token's gradient is taken once."""
        return 0

    def initial_state(self, params: Any, head_dim: int, window: int, dtype: jnp.dtype) -> State:
        """The learned initial weights; no momentum yet."""
        weights = MlpWeights(params.w1.astype(dtype), params.w2.astype(dtype))
        momentum = jax.tree.map(jnp.zeros_like, weights) if self.gates_type is TitansGates else None
        return State(weights, momentum, anchor=weights)

    def prepare(self, gates: Any, valid: Array, dtype: jnp.dtype) -> Steps:
        """Log retentions and step sizes; neutral where a token is padding."""
        eta = jnp.where(valid, gates.eta.astype(dtype), 0)
        if isinstance(gates, TitansGates):
            return Steps(
                log_decay(gates.alpha, valid, dtype),
                eta,
                log_decay(gates.beta, valid, dtype),
                valid.astype(dtype),
            )
        if gates.alpha is None:
            return Steps(jnp.zeros_like(eta), eta, None, None)
        return Steps(log_decay(gates.alpha, valid, dtype), eta, None, None)

    def coefficients(self, prepared: Steps) -> tuple[Coefficients, EndCoefficients]:
        """DLA: `G(t, i) = A(t, i) eta_i`; Titans: `eta_i sum_{i<=j<=t} A(t, j) B(j, i)`."""
        total, products = decay_products(prepared.log_alpha)
        log_total, eta = jnp.sum(prepared.log_alpha), prepared.eta[:, None]
        if prepared.log_beta is None:
            grads = eta * products
            return Coefficients(total, grads), EndCoefficients(total[-1], grads[:, -1], log_total)
        kept, momenta = decay_products(prepared.log_beta)
        momenta = eta * momenta
        applied = prepared.applied[:, None] * products
        precise = jax.lax.Precision.HIGHEST
        grads = jnp.matmul(momenta, applied, precision=precise)
        momentum = jnp.matmul(kept, applied, precision=precise)
        return Coefficients(total, grads, momentum), EndCoefficients(
            total[-1], grads[:, -1], log_total, momentum[-1], kept[-1], momenta[:, -1]
        )

    def factors(self, params: Any, state: State, k: Array, v: Array) -> Factors:
        """Gradients of the inner loss at the weights of the chunk's start."""
        weights = state.weights if state.anchor is None else state.anchor
        loss = _LOSSES[self.gates_type]
        return gradient_factors(self.network, norm_of(params), loss, weights, k, v)

    def step(self, params: Any, state: State, k: Array, v: Array, gates: Any) -> State:
        """One token of eq. 30, or of eqs. 34 and 35."""

        def loss(weights: MlpWeights) -> Array:
            y = forward(self.network, linear_of(weights, k.dtype), norm_of(params), k)
            return jnp.sum(_LOSSES[self.gates_type](y, v))

        grads = jax.grad(loss)(state.anchor)
        dtype = jax.tree.leaves(state.weights)[0].dtype
        eta = gates.eta.astype(dtype)
        alpha = jnp.ones((), dtype) if gates.alpha is None else gates.alpha.astype(dtype)
        if state.momentum is None:
            weights = jax.tree.map(lambda w, g: alpha * w - eta * g, state.weights, grads)
            return state._replace(weights=weights)
        beta = gates.beta.astype(dtype)
        momentum = jax.tree.map(lambda s, g: beta * s - eta * g, state.momentum, grads)
        weights = jax.tree.map(lambda w, s: alpha * w + s, state.weights, momentum)
        return state._replace(weights=weights, momentum=momentum)

    def end_chunk(self, params: Any, state: State) -> State:
        """Renormalise the weights for `mem_norm="weight_l2"`; the next chunk starts at them."""
        weights = state.weights
        if self.network.mem_norm == "weight_l2":
            initial = MlpWeights(params.w1, params.w2)
            weights = jax.tree.map(_with_row_norms_of, weights, initial)
        return state._replace(weights=weights, anchor=None if state.anchor is None else weights)


def _with_row_norms_of(w: Array, initial: Array) -> Array:
    """`w` with every row scaled to the norm of that row of `initial`."""

    def norm(x: Array) -> Array:
        # The floor keeps the gradient of a zero row finite.
        return jnp.sqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))

    return w * (norm(initial.astype(w.dtype)) / norm(w))


register("dla", lambda mem_norm, activation: DeepRule(DLAGates, MlpNetwork(activation, mem_norm)))
register(
    "titans", lambda mem_norm, activation: DeepRule(TitansGates, MlpNetwork(activation, mem_norm))
)
