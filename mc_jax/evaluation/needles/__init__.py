"""The command `eval.py needles`: needle in a haystack after RULER, over lengths and depths."""

from mc_jax.evaluation.needles.command import needles_command
from mc_jax.evaluation.needles.run import Cell, evaluate_cell
from mc_jax.evaluation.needles.score import recalled

__all__ = ["Cell", "evaluate_cell", "needles_command", "recalled"]
