"""Evaluation: how well a checkpoint predicts, where in the context, and where its gates look."""

from mc_jax.evaluation.gates import GateMap, gate_maps, memory_gates
from mc_jax.evaluation.report import summary
from mc_jax.evaluation.run import evaluate

__all__ = ["GateMap", "evaluate", "gate_maps", "memory_gates", "summary"]
