"""Memories: small networks whose weights are the recurrent state, and how they are written."""

from mc_jax.memory.deep import DLAGates, TitansGates
from mc_jax.memory.linear import LinearGates, SWLAGates
from mc_jax.memory.network import ACTIVATIONS, MEM_NORMS, DeepParams, NormParams
from mc_jax.memory.rule import Rule, State, get_rule, register, rule_names

__all__ = [
    "ACTIVATIONS",
    "MEM_NORMS",
    "DLAGates",
    "DeepParams",
    "LinearGates",
    "NormParams",
    "Rule",
    "SWLAGates",
    "State",
    "TitansGates",
    "get_rule",
    "register",
    "rule_names",
]
