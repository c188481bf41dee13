"""`eval.py report`: everything that was measured on one page, beside the paper's numbers."""

from mc_jax.evaluation.report.collect import collect
from mc_jax.evaluation.report.command import build, report_command, write

__all__ = ["build", "collect", "report_command", "write"]
