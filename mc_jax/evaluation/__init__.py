"""Evaluation: how well a checkpoint predicts, where in the context, and where its gates look."""

from mc_jax.evaluation.gates import GateMap, gate_maps, memory_gates
from mc_jax.evaluation.run import evaluate
from mc_jax.evaluation.summary import summary

__all__ = ["GateMap", "evaluate", "gate_maps", "memory_gates", "summary"]
