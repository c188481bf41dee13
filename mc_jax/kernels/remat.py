"""What `model.remat="dots"` keeps beside products."""

from jax.ad_checkpoint import checkpoint_name

from mc_jax.typing import Array

KEPT = "read"


def keep(*arrays: Array) -> list[Array]:
    """Arrays that are small beside the time that it takes to make them again."""
    return [checkpoint_name(x, KEPT) for x in arrays]
