"""Plans: what an experiment needs on devices that are not here, from the compiler itself."""

from mc_jax.planning.plan import Plan, plan
from mc_jax.planning.report import describe

__all__ = ["Plan", "describe", "plan"]
