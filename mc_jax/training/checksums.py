"""Checksums of a checkpoint's files, so that a damaged one is found before it is read.

Orbax's storage has none of its own for the arrays: a flipped bit would go unnoticed, and a file
cut short ends in a page of messages from its threads.
"""

import json
import zlib
from pathlib import Path

_NAME = "checksums.json"
_BLOCK = 1 << 24


def write(folder: Path) -> None:
    """Write down the checksums of all files in the subfolders of `folder`."""
    sums = {str(path.relative_to(folder)): _checksum(path) for path in _files(folder)}
    (folder / _NAME).write_text(json.dumps(sums))


def damaged(folder: Path, part: str = "", share: int = 0, shares: int = 1) -> str | None:
    """Name the first file that is missing or differs from its checksum, or None.

    A checkpoint without checksums passes.

    Args:
      folder: the checkpoint.
      part: start of the names that are looked at; all by default.
      share: which of `shares` equal shares of these files, from 0.
      shares: how many there are; 1 for all files.
    """
    if not (folder / _NAME).exists():
        return None
    try:
        sums = json.loads((folder / _NAME).read_text())
    except ValueError:
        return _NAME
    names = [name for name in sums if name.startswith(part)]
    for name in names[share::shares]:
        path = folder / name
        if not (path.is_file() and _checksum(path) == sums[name]):
            return name
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/**/*") if path.is_file())


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum
