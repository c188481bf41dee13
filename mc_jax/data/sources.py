"""Text sources: what `config.data.sources` names, as a stream of documents.

A source is a string, "kind:path" or "kind:path?option=value&option=value"; the kinds stand in
`mc_jax.data.config` and the formats in `mc_jax.data.readers`. A document is held out (for
evaluation) when a hash of its name falls below the held-out fraction: the name is the file's path
below the folder that all files share, with the row's number, so that the choice is the same on
every machine and stays when documents are added. Of a single text file the end is held out.
"""

import dataclasses
import glob
import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mc_jax.data import readers
from mc_jax.errors import InputError

# kind -> its options with their defaults, besides max_tokens
_OPTIONS: dict[str, dict[str, str | None]] = {
    "stdlib": {},
    "files": {},
    "jsonl": {"field": "text"},
    "parquet": {"field": "text"},
    "arrayrecord": {"field": None},
    "hf": {"field": "text", "split": "train"},
}
KINDS = tuple(_OPTIONS)
# Folders of the standard library that hold no hand-written code of it.
_OTHER_FOLDERS = re.compile(
    "__pycache__|site-packages|dist-packages|tests?|idle_test|pydoc_data|config-.*"
)


class Piece(NamedTuple):
    """A stretch of text; consecutive pieces of one document continue it."""

    document: str
    text: str
    held_out: bool


@dataclasses.dataclass(frozen=True)
class Source:
    """One text source.

    Attributes:
      field: the config field that names it, for messages.
      spec: the string as given.
      kind: before the colon.
      path: after the colon: a file, a glob, or a dataset's name; "" for stdlib.
      options: its options, all of them.
      max_tokens: where to stop, or None.
    """

    field: str
    spec: str
    kind: str
    path: str
    options: Mapping[str, str | None]
    max_tokens: int | None

    def files(self) -> list[str]:
        """Returns the files of this source, sorted; none for a Hugging Face dataset.

        Raises:
          InputError: no file is there.
        """
        if self.kind == "hf":
            return []
        if self.kind == "stdlib":
            files = _stdlib_files(sysconfig.get_path("stdlib"))
        else:
            found = glob.glob(os.path.expanduser(self.path), recursive=True)
            files = sorted(os.path.abspath(path) for path in found if os.path.isfile(path))
        if not files:
            raise InputError(
                self.field, self.spec, "a path or glob that matches a file (/folder/**/*.txt, say)"
            )
        return files

    def size(self) -> int | None:
        """Returns the bytes of text to read, where they are known beforehand."""
        if self.kind not in ("stdlib", "files"):
            return None
        return sum(os.path.getsize(path) for path in self.files())

    def identity(self) -> list[Any]:
        """Returns what changes when the text of this source changes."""
        stats = [(path, os.stat(path)) for path in self.files()]
        files = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        return [self.kind, self.path, sorted(self.options.items()), self.max_tokens, files]

    def pieces(self, held_out: float) -> Iterator[Piece]:
        """Yields the text in order.

        Args:
          held_out: fraction of the documents to mark as held out, in [0, 1].

        Raises:
          InputError: a file that cannot be read, with its name and line, row or byte.
        """
        files = self.files()
        if self.kind in ("stdlib", "files") and len(files) == 1:
            yield from _head_and_tail(files[0], held_out)
            return
        for document, text in self._documents(files):
            if text:
                yield Piece(document, text, _fraction(document) < held_out)

    def _documents(self, files: list[str]) -> Iterator[tuple[str, str]]:
        if self.kind == "hf":
            name, _, config = self.path.partition(":")
            split, field = self.options["split"], self.options["field"]
            assert split is not None and field is not None  # both have a default
            for row, text in readers.read_hf(name, config or None, split, field):
                yield str(row), text
            return
        root = os.path.commonpath([os.path.dirname(path) for path in files])
        for path in files:
            name = os.path.relpath(path, root)
            for row, text in self._read(path):
                yield f"{name}:{row}", text

    def _read(self, path: str) -> readers.Documents:
        if not os.access(path, os.R_OK):
            raise InputError(path, "no permission to read it", "a readable file")
        field = self.options.get("field")
        if self.kind == "arrayrecord":
            return readers.read_array_record(path, field)
        if field is None:
            return readers.read_text(path)
        return (readers.read_jsonl if self.kind == "jsonl" else readers.read_parquet)(path, field)


def parse(spec: str, field: str) -> Source:
    """Returns the source that a string names.

    Args:
      spec: see the module's docstring.
      field: the config field it stands in, for messages.

    Raises:
      InputError: an unknown kind or option, or no path.
    """
    # A "?" may be part of a glob: options follow the last one, and hold a "=".
    found = re.fullmatch(r"(.*?)(?:\?([^?=/]+=[^?/]*))?", spec, re.DOTALL)
    assert found is not None  # the pattern matches every string
    kind, _, path = found[1].partition(":")
    if kind not in _OPTIONS:
        raise InputError(field, spec, "one of " + ", ".join(_OPTIONS) + " before the colon")
    if (kind == "stdlib") != (not path):
        raise InputError(field, spec, "'stdlib' alone" if path else f"'{kind}:' and then a path")
    options: dict[str, str | None] = {**_OPTIONS[kind], "max_tokens": None}
    for option in (found[2] or "").split("&") if found[2] else ():
        name, _, value = option.partition("=")
        if name not in options or not value:
            raise InputError(field, spec, f"after '?' name=value of {', '.join(options)}")
        options[name] = value
    limit = options.pop("max_tokens")
    if limit is not None and (not limit.isdecimal() or int(limit) < 1):
        raise InputError(field, spec, "max_tokens=N with N a positive integer")
    return Source(field, spec, kind, path, options, int(limit) if limit else None)


def _head_and_tail(path: str, held_out: float) -> Iterator[Piece]:
    size = os.path.getsize(path)
    cut = readers.character_boundary(path, round(size * (1 - held_out)))
    for start, stop in ((0, cut), (cut, size)):
        for _, text in readers.read_text(path, start, stop):
            yield Piece(f"{os.path.basename(path)}:{start}", text, start == cut)


def _fraction(name: str) -> float:
    """Returns a number in [0, 1) that depends on the name alone."""
    digest = hashlib.blake2b(name.replace(os.sep, "/").encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _stdlib_files(root: str) -> list[str]:
    """Returns the .py files of the standard library, without tests and generated files."""
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not _OTHER_FOLDERS.fullmatch(name)]
        files += [
            os.path.join(folder, name)
            for name in names
            if name.endswith(".py") and not name.startswith("_sysconfigdata")
        ]
    return sorted(files)
