"""Where arrays live: the mesh, and the one table that says what is split over which axis."""

from mc_jax.sharding.config import MeshConfig, default_config
from mc_jax.sharding.mesh import active_mesh, constrain, make_mesh
from mc_jax.sharding.rules import PARAMETERS, RULES, check_model, spec, tree_shardings, ways

__all__ = [
    "PARAMETERS",
    "RULES",
    "MeshConfig",
    "active_mesh",
    "check_model",
    "constrain",
    "default_config",
    "make_mesh",
    "spec",
    "tree_shardings",
    "ways",
]
