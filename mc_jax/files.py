"""Files that are whole at any moment, also when the process is killed while writing."""

import os
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one go: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
