"""Packages import those below them alone, so that each can be read without those above."""

import ast
from pathlib import Path

import mc_jax

# From below. What stands in one line does not import each other.
LAYERS = [
    {"errors", "typing", "version", "allocator"},
    {"device", "files", "settings", "data"},
    {"memory", "sharding"},
    {"kernels"},
    {"caching"},
    {"model"},
    {"inference", "training"},
    {"evaluation", "planning"},
    {"sweeps"},
]
ROOT = Path(mc_jax.__file__).parent


def imported(file):
    """Names in `mc_jax` that a file imports from."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "mc_jax":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("mc_jax."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (x.name.split(".")[1] for x in node.names if x.name.startswith("mc_jax."))


def test_arrows_run_downward():
    place = {name: height for height, names in enumerate(LAYERS) for name in names}
    upward = []
    for file in ROOT.rglob("*.py"):
        name = file.relative_to(ROOT).with_suffix("").parts[0]
        if name != "__init__":
            upward += [
                (name, other)
                for other in imported(file)
                if other != name and place[other] >= place[name]
            ]
    assert not upward
