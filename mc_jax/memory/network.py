"""The networks whose weights are the recurrent state.

A network is written once, over an abstract linear map `linear(name, x)`. Where the map comes from
decides what is read: a cached memory multiplies by its weights, the online memory goes through the
chunk-parallel form (`mc_jax.memory.chunk`), a soup mixes several of them.

Inside a head tokens lie on the last axis: a map is `W @ x` as printed, a TPU has tokens in its
lanes, and on a CPU the gradients of such products are several times faster than the transposed
ones.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mc_jax.errors import InputError
from mc_jax.typing import Array, Float

Linear = Callable[[str, Array], Array]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    # Not jax.nn.gelu(approximate=False), which goes through the slower erfc.
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5)),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}
MEM_NORMS = ("layer", "none", "weight_l2")
NORM_EPS = 1e-6


class NormParams(NamedTuple):
    """Affine of the memory norm; learned by the outer optimizer, not a fast weight."""

    scale: Float[Array, "heads head_dim"]
    bias: Float[Array, "heads head_dim"]


class DeepParams(NamedTuple):
    """Learned parts of an MLP memory: initial weights and, for `mem_norm="layer"`, the norm."""

    w1: Float[Array, "heads head_dim hidden"]
    w2: Float[Array, "heads hidden head_dim"]
    norm: NormParams | None = None


class MatrixWeights(NamedTuple):
    """Fast weights of a matrix memory, `M(x) = w x`."""

    w: Float[Array, "head_dim head_dim"]


class MlpWeights(NamedTuple):
    """Fast weights of an MLP memory."""

    w1: Float[Array, "head_dim hidden"]
    w2: Float[Array, "hidden head_dim"]


Weights = MatrixWeights | MlpWeights


class Network(Protocol):
    """A memory as a function of its linear maps."""

    @property
    def is_linear(self) -> bool:
        """Whether mixing outputs and mixing parameters are the same thing."""
        ...

    def features(self, linear: Linear, x: Array) -> Array:
        """What depends on the weights, for inputs `x` [head_dim, tokens]."""
        ...

    def output(self, norm: NormParams | None, x: Array, features: Array, weight: Any) -> Array:
        """`sum_i g_i M_i(x)`, given `sum_i g_i features_i` and `weight`, the sum of the g_i.

        A memory's output is affine in its features, in a way that all memories share.
        """
        ...


def forward(network: Network, linear: Linear, norm: NormParams | None, x: Array) -> Array:
    """Output of one memory for inputs `x` [head_dim, tokens]."""
    return network.output(norm, x, network.features(linear, x), 1.0)


@dataclasses.dataclass(frozen=True)
class MatrixNetwork:
    """`M(x) = W x`."""

    is_linear = True

    def features(self, linear: Linear, x: Array) -> Array:
        """The output itself."""
        return linear("w", x)

    def output(self, norm: NormParams | None, x: Array, features: Array, weight: Any) -> Array:
        """See `Network`."""
        return features


@dataclasses.dataclass(frozen=True)
class MlpNetwork:
    """`M(x) = x + LN(W1 act(W2 x))`, the residual MLP of the paper's appendix B.

    Attributes:
      activation: one of `ACTIVATIONS`.
      mem_norm: one of `MEM_NORMS`; weight_l2 scales the weights where they are written.

    Raises:
      InputError: a name that is neither.
    """

    activation: str
    mem_norm: str
    is_linear = False

    def __post_init__(self) -> None:
        """Check the names."""
        for field, allowed in (("activation", ACTIVATIONS), ("mem_norm", MEM_NORMS)):
            if getattr(self, field) not in allowed:
                raise InputError(field, getattr(self, field), " | ".join(allowed))

    def features(self, linear: Linear, x: Array) -> Array:
        """`W1 act(W2 x)`, for `mem_norm="layer"` brought to mean 0 and variance 1."""
        y = linear("w1", ACTIVATIONS[self.activation](linear("w2", x)))
        if self.mem_norm == "layer":
            y = y - jnp.mean(y, -2, keepdims=True)
            y = y * jax.lax.rsqrt(jnp.mean(y * y, -2, keepdims=True) + NORM_EPS)
        return y

    def output(self, norm: NormParams | None, x: Array, features: Array, weight: Any) -> Array:
        """See `Network`."""
        if self.mem_norm == "layer":
            return weight * (x + norm.bias[:, None]) + norm.scale[:, None] * features
        return weight * x + features


def matmul(a: Array, b: Array, dtype: jnp.dtype) -> Array:
    """`a @ b` with inputs in `dtype`, accumulated in at least float32."""
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=accumulator(dtype))


@jax.custom_jvp
def narrow_matmul(a: Array, b: Array) -> Array:
    """As `matmul` of two arrays of one type, in which their gradients are multiplied, too."""
    return matmul(a, b, a.dtype)


@narrow_matmul.defjvp
def _narrow_tangent(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple:
    (a, b), (da, db) = primals, tangents
    # In their type, so that the way back is: a float32 gradient would make its products float32's.
    return narrow_matmul(a, b), (da @ b + a @ db).astype(accumulator(a.dtype))


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The type of states and sums beside inputs of `dtype`: float32, or float64 under x64."""
    return jnp.promote_types(dtype, jnp.float32)


def linear_of(weights: Weights, dtype: jnp.dtype) -> Linear:
    """The linear maps of one memory with fixed weights."""
    return lambda name, x: matmul(getattr(weights, name), x, dtype)
