"""What is split over which axis of the mesh: two tables, and how they are applied."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mc_jax.errors import InputError
from mc_jax.typing import PyTree

# An axis of an array, and the axes of the mesh that it is split over.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("context",),
    # Devices that share sequences share the parameters as well.
    "embed": ("fsdp", "context"),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}

# The end of a parameter's path, and its axes; what is not listed is on every device. The
# optimizer's moments lie where their parameters do.
PARAMETERS: dict[str, tuple[str | None, ...]] = {
    r"embedding|head": ("vocab", "embed"),
    r"qkv/kernel": ("embed", None, "heads", None),
    r"(query|gate)/kernel": ("embed", "heads", None),
    r"mixer/out/kernel": ("heads", None, "embed"),
    r"conv/kernel": (None, None, "heads", None),
    r"gates/kernel": ("embed", None, "heads"),
    r"gates/bias": (None, "heads"),
    r"distance/kernel": ("embed", "heads", None),
    r"distance/bias": ("heads", None),
    r"temperature": ("heads",),
    r"memory/w[12]": ("heads", None, None),
    r"memory/norm_(scale|bias)": ("heads", None),
    r"mlp/in/kernel": ("embed", None, "mlp"),
    r"mlp/out/kernel": ("mlp", "embed"),
}


def spec(
    mesh: Mesh | AbstractMesh, axes: Sequence[str | None], shape: Sequence[int]
) -> PartitionSpec:
    """How an array of `shape` is split, an entry of `RULES` or None for each of its axes.

    A vocabulary that does not divide stays whole: tokenizers choose its size.
    """
    parts: list[Any] = []
    for axis, size in zip(axes, shape, strict=True):
        over = tuple(name for name in RULES.get(axis or "", ()) if mesh.shape[name] > 1)
        whole = not over or (axis == "vocab" and size % ways(mesh.shape, "vocab"))
        parts.append(None if whole else over if len(over) > 1 else over[0])
    return PartitionSpec(*parts)


def ways(sizes: Mapping[str, int], axis: str) -> int:
    """Parts that an axis of arrays is split into, on a mesh of those sizes."""
    return math.prod(sizes[name] for name in RULES[axis])


def tree_shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """Where each array of a training state lives, from its path and shape."""

    def sharding(path: Any, x: Any) -> NamedSharding:
        name = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        for pattern, axes in PARAMETERS.items():
            if re.search(f"(^|/)({pattern})$", name):
                # Repetitions of the pattern may be stacked on a first axis.
                stacked = (None,) * (x.ndim - len(axes))
                return NamedSharding(mesh, spec(mesh, (*stacked, *axes), x.shape))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def check_model(sizes: Mapping[str, int], model: Any, length: int) -> None:
    """Check that a model's arrays and its sequences can be split over a mesh.

    Args:
      sizes: of the mesh's axes.
      model: a `ModelConfig`.
      length: tokens of a sequence.

    Raises:
      InputError: naming the setting, and what would fit.
    """
    for field, value, axis in (
        ("model.num_heads", model.num_heads, "heads"),
        ("model.mlp_dim", model.mlp_dim, "mlp"),
        ("model.dim", model.dim, "embed"),
        ("data.length", length, "length"),
    ):
        parts = ways(sizes, axis)
        if value % parts:
            over = " x ".join(f"mesh.{name}" for name in RULES[axis])
            raise InputError(field, value, f"a multiple of {over} = {parts}")
