"""How a layer makes the gates of an update rule from its input."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mc_jax.memory import DLAGates, LinearGates, SWLAGates, TitansGates
from mc_jax.memory.network import accumulator
from mc_jax.model.config import MemoryConfig
from mc_jax.typing import Array, Float

DLA_STEP = 0.1


class RuleGates(nn.Module):
    """Gates per head and token, `sigmoid(W x + b)` in float32 or more, in the rule's range.

    W starts at zero, so that at first every gate is what its bias says: the retention alpha
    4C / (4C + 1) for segments of C tokens (a memory outlives its segment), swla's own write close
    to 1, the others in the middle of their range. Titans' step eta is `sigmoid (1 - beta) /
    chunk_len`: the momentum sums up 1 / (1 - beta) of each gradient and a chunk takes all its
    gradients at one place, so that larger steps overshoot.
    """

    config: MemoryConfig
    num_heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch length dim"]) -> Any:
        """The NamedTuple of gates that `mc_jax.memory_caching` takes for the rule."""
        logits = _initial_logits(self.config)
        if not logits:
            return None
        gates = nn.DenseGeneral(
            (len(logits), self.num_heads),
            dtype=accumulator(x.dtype),
            kernel_init=nn.initializers.zeros,
            bias_init=lambda key, shape, dtype: jnp.repeat(
                jnp.asarray(list(logits.values()), dtype), self.num_heads
            ).reshape(shape),
            name="gates",
        )(x)
        gate = dict(zip(logits, jnp.unstack(nn.sigmoid(gates), axis=2), strict=True))
        match self.config.rule:
            case "linear":
                return LinearGates(gate["alpha"])
            case "swla":
                back = [gate[f"beta_{i}"] for i in range(1, self.config.window)]
                beta = jnp.stack(back, -1) if back else jnp.zeros((*gate["lam"].shape, 0))
                return SWLAGates(gate["alpha"], beta, gate["lam"])
            case "dla":
                return DLAGates(DLA_STEP * gate["eta"], gate.get("alpha"))
            case _:
                eta = gate["eta"] * (1 - gate["beta"]) / self.config.chunk_len
                return TitansGates(gate["alpha"], gate["beta"], eta)


def _initial_logits(config: MemoryConfig) -> dict[str, float]:
    """Every gate that the rule learns, and its logit at the start."""
    logits = {"alpha": math.log(4 * config.segment_len)} if config.decays else {}
    match config.rule:
        case "swla":
            return logits | {"lam": 3.0} | {f"beta_{i}": 0.0 for i in range(1, config.window)}
        case "dla":
            return logits | {"eta": 0.0}
        case "titans":
            return logits | {"beta": 0.0, "eta": 0.0}
    return logits
