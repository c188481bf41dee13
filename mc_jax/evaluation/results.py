"""Result files: what every evaluation writes, and `eval.py report` finds.

A result is a JSON object. Beside what was found it says which kind of result it is, the command
that makes it again, the day, and the versions it was made with.
"""

import datetime
import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from mc_jax.errors import InputError
from mc_jax.files import replace
from mc_jax.version import __version__

PACKAGES = ("jax", "jaxlib", "flax")


class Result(NamedTuple):
    """One result file.

    Attributes:
      path: of the file.
      kind: of the result, as in `write`.
      content: the whole object.
    """

    path: Path
    kind: str
    content: dict[str, Any]


class Found(NamedTuple):
    """What `search` has found.

    Attributes:
      results: each once, however many of the folders it is in.
      damaged: files that are called .json and are no JSON.
    """

    results: list[Result]
    damaged: list[Path]


def write(path: Path, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write a result, whole or not at all.

    Args:
      path: of the file; its folder is there.
      kind: of the result, such as "evaluation"; the report has a section for each.
      content: numbers, texts, lists and objects. No NaN: what does not exist is None.

    Returns:
      What was written: `kind`, `command`, `date`, `versions`, and the content.
    """
    result = {
        "kind": kind,
        "command": _command(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        **content,
    }
    replace(path, json.dumps(result, indent=2, allow_nan=False).encode())
    return result


def make_folder(folder: Path, field: str = "workdir") -> None:
    """Make a folder for results.

    Args:
      folder: which may be there.
      field: the setting that says where.

    Raises:
      InputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        allowed = f"a folder that can be written ({error.strerror})"
        raise InputError(field, str(folder), allowed) from None
    if not os.access(folder, os.W_OK):
        raise InputError(field, str(folder), "a folder that can be written")


def versions() -> dict[str, str]:
    """Of this package and those that its numbers depend on."""
    found = {name: metadata.version(name) for name in PACKAGES}
    return {"python": sys.version.split()[0], "mc_jax": __version__, **found}


def find(folders: Iterable[Path]) -> list[Result]:
    """All result files in folders and the folders in them, in the order of their paths.

    Raises:
      InputError: a folder that is not there.
    """
    return search(folders).results


def search(folders: Iterable[Path]) -> Found:
    """The same, and the damaged files among them.

    Raises:
      InputError: a folder that is not there.
    """
    results: dict[Path, Result] = {}
    damaged: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError("workdir", str(folder), "a folder that exists")
        for path in sorted(folder.rglob("*.json")):
            try:
                content = json.loads(path.read_bytes())
            except (OSError, ValueError):
                damaged[path] = None
            else:
                if _is_result(content):
                    results[path] = Result(path, content["kind"], content)
    return Found(list(results.values()), list(damaged))


def _is_result(content: Any) -> bool:
    """Whether it is a result and no other JSON."""
    return (
        isinstance(content, dict)
        and all(isinstance(content.get(name), str) for name in ("kind", "command", "date"))
        and isinstance(content.get("versions"), dict)
    )


def _command() -> str:
    """What was typed, from the program's own name on: no folder of this machine."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
