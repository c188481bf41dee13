"""What the kernels that write memories share: what they take and give, and the other two forms."""

from mc_jax.kernels.writing.forms import write
from mc_jax.kernels.writing.types import Sequence, Written, check_write_mode

__all__ = ["Sequence", "Written", "check_write_mode", "write"]
