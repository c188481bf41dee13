"""Which implementation of an op runs."""

from collections.abc import Callable
from typing import Any

from mc_jax.errors import InputError

IMPLEMENTATIONS = ("reference", "xla", "pallas", "pallas_interpret")


def choose(
    implementation: str | None, config: Any, unsupported: Callable[[bool], str | None]
) -> str:
    """The implementation to run; for None pallas where it can run, else xla.

    Args:
      implementation: as named by the caller.
      config: block sizes as given by the caller, which pallas alone has.
      unsupported: why no kernel can run, None if one can; called with whether any device will do.

    Raises:
      InputError: an implementation that is unknown or cannot run here.
    """
    if implementation is None:
        implementation = "xla" if unsupported(False) else "pallas"
    if implementation not in IMPLEMENTATIONS:
        raise InputError("implementation", implementation, " | ".join(IMPLEMENTATIONS) + " | None")
    if implementation in ("reference", "xla"):
        if config is not None:
            raise InputError("config", config, f"None: {implementation} has no blocks")
        return implementation
    reason = unsupported(implementation == "pallas_interpret")
    if reason:
        raise InputError("implementation", implementation, f"xla: {reason}")
    return implementation
