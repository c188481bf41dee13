"""Sweeps: many training runs, evaluated and compared. `docs/sweeps.md` says how to write one."""

from mc_jax.sweeps.description import Cell, Lines, Rows, Sweep, grid

__all__ = ["Cell", "Lines", "Rows", "Sweep", "grid"]
