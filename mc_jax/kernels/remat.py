"""What `model.remat="dots"` keeps beside products."""

from jax.ad_checkpoint import checkpoint_name

from mc_jax.typing import Array

KEPT = "read"


def keep(*arrays: Array) -> tuple[Array, ...]:
    """Arrays that would take longer to make again than they are worth in memory."""
    return tuple(checkpoint_name(x, KEPT) for x in arrays)
