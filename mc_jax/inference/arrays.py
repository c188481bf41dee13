"""Trees of arrays in safetensors files, bit for bit, with checks that they are whole."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from mc_jax.errors import InputError
from mc_jax.files import replace
from mc_jax.typing import PyTree

_DIGEST = "mc_jax.digest"


def named(tree: PyTree) -> dict[str, Any]:
    """Leaves by their paths, such as "layers_0.mixer.kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def digest(arrays: Mapping[str, Any]) -> str:
    """A hash of names, types, shapes and values."""
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        hasher.update(f"{name} {array.dtype} {array.shape}\n".encode())
        hasher.update(np.ascontiguousarray(array).view(np.uint8).data)
    return hasher.hexdigest()


def write(path: Path, tree: PyTree, about: Mapping[str, str]) -> None:
    """Write a tree's arrays, in one go.

    Args:
      path: the file.
      tree: arrays.
      about: what else is to be known of them.

    Raises:
      InputError: the file cannot be written.
    """
    host = named(jax.device_get(tree))
    # In C order: safetensors writes an array's bytes as they lie.
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in host.items()}
    metadata = {**about, _DIGEST: digest(arrays)}
    content = safetensors.numpy.save(arrays, metadata)
    try:
        replace(path, content)
    except OSError as error:
        raise InputError(str(path), error.strerror, "a file that can be written") from None


def read(path: Path) -> tuple[dict[str, jax.Array], dict[str, str]]:
    """The arrays of a file by name, and what is known of them.

    Raises:
      InputError: no such file, or one that is not as it was written.
    """
    if not path.is_file():
        raise InputError(str(path), "no such file", "a file that exists")
    try:
        with safetensors.safe_open(path, framework="flax") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(str(path), str(error), "a whole safetensors file; this is none") from None
    if _DIGEST in about and about.pop(_DIGEST) != digest(arrays):
        raise InputError(str(path), "other values than were written", "the file as it was written")
    return arrays, about


def as_tree(path: Path, arrays: Mapping[str, Any], like: PyTree, shapes: bool = True) -> PyTree:
    """The tree whose leaves a file has.

    Args:
      path: the file, for the error.
      arrays: what `read` gave.
      like: a tree of the same structure; types must agree.
      shapes: whether shapes must agree, too.

    Raises:
      InputError: an array that is missing, too many, or of another type or shape.
    """
    wanted = named(like)
    for name in sorted(wanted.keys() ^ arrays.keys()):
        found = "nothing" if name in wanted else "an array"
        raise InputError(f"{path}: {name}", found, "the arrays of this model")
    for name, leaf in wanted.items():
        array = arrays[name]
        if array.dtype != leaf.dtype or (shapes and array.shape != leaf.shape):
            found = f"{array.dtype}{list(array.shape)}"
            raise InputError(f"{path}: {name}", found, f"{leaf.dtype}{list(leaf.shape)}")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])
