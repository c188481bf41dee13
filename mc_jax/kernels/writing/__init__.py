"""What the kernels that write memories share: what they take and give, and the other two forms."""

from mc_jax.kernels.writing.reference import reference
from mc_jax.kernels.writing.types import Sequence, Written
from mc_jax.kernels.writing.xla import xla

__all__ = ["Sequence", "Written", "reference", "xla"]
