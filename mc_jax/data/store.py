"""The token store: a source is tokenised once, into files that every later run maps into memory.

A store is a folder `<kind>-<key>` of `config.data.cache_dir`:

  train.bin, held_out.bin   token ids, little-endian uint16 (uint32 for a vocabulary above 65536),
                            one end-of-text id before, between and after the documents
  meta.json                 what it was made from, and each file's size, counts and checksum

The key is a hash of the source's identity (files with their sizes and times, or the dataset's
name; options), the tokenizer and the held-out fraction, so a store is never stale. It is written
under another name and renamed when complete: a run that is killed leaves no half store, and when
two processes build at once the first one to finish wins. Sizes and checksums are looked at on
opening; a damaged store is built again.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import tqdm

from mc_jax.data.sources import Piece, Source
from mc_jax.data.tokenizers import Tokenizer
from mc_jax.errors import InputError

_FORMAT = 1  # part of the key: raise it when the layout changes
_SPLITS = ("train", "held_out")
_BATCH_CHARS = 1 << 20  # text handed to the tokenizer at once
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TokenFile:
    """One split of a store.

    Attributes:
      path: the file.
      dtype: numpy's name of the ids' type.
      tokens: how many ids it holds.
      documents: how many documents.
      text_bytes: the UTF-8 length of their text.
      checksum: CRC-32 of the file, or of 64 MiB spread evenly over a larger one.
    """

    path: str
    dtype: str
    tokens: int
    documents: int
    text_bytes: int
    checksum: int

    def map(self) -> np.ndarray:
        """Returns the ids as a read-only memory map."""
        if not self.tokens:
            return np.zeros(0, self.dtype)  # an empty file cannot be mapped
        return np.memmap(self.path, self.dtype, mode="r", shape=(self.tokens,))


def open_store(
    source: Source, tokenizer: Tokenizer, held_out: float, cache_dir: str
) -> dict[str, TokenFile]:
    """Returns the token files {"train", "held_out"} of a source, built now if they are not there.

    Args:
      source: the text.
      tokenizer: what turns it into ids.
      held_out: fraction of the documents that go to "held_out", in [0, 1].
      cache_dir: folder of the stores; made when missing.

    Raises:
      InputError: a source that cannot be read, or a folder that cannot be written.
    """
    identity = [_FORMAT, source.identity(), tokenizer.fingerprint, held_out]
    key = hashlib.blake2b(json.dumps(identity).encode(), digest_size=10).hexdigest()
    folder = os.path.join(os.path.expanduser(cache_dir), f"{source.kind}-{key}")
    if (files := _read(folder)) is not None:
        return files
    try:
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=os.path.dirname(folder), prefix=f".{source.kind}-", ignore_cleanup_errors=True
        ) as scratch:
            built = os.path.join(scratch, "store")
            os.mkdir(built)
            _build(built, source, tokenizer, held_out)
            return _publish(built, folder)
    except OSError as error:
        raise InputError(
            "data.cache_dir", cache_dir, f"a folder with room that can be written ({error})"
        ) from error


def _read(folder: str) -> dict[str, TokenFile] | None:
    """Returns the files of a store, or None when there is none or it is damaged."""
    if not os.path.isdir(folder):
        return None
    try:
        with open(os.path.join(folder, "meta.json"), encoding="utf-8") as file:
            splits = json.load(file)["splits"]
        files = {
            name: TokenFile(path=os.path.join(folder, f"{name}.bin"), **splits[name])
            for name in _SPLITS
        }
        damaged = [name for name, file in files.items() if not _is_intact(file)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        damaged = [repr(error)]
    if damaged:
        _logger.warning("the token store %s is damaged: %s", folder, ", ".join(damaged))
        return None
    return files


def _is_intact(file: TokenFile) -> bool:
    expected = file.tokens * np.dtype(file.dtype).itemsize
    return os.path.getsize(file.path) == expected and _checksum(file.path) == file.checksum


def _checksum(path: str, blocks: int = 64, block: int = 1 << 20) -> int:
    """Returns the CRC-32 of a file; of a large one, of blocks spread evenly over it."""
    size, crc = os.path.getsize(path), 0
    with open(path, "rb") as file:
        for i in range(blocks):
            file.seek(max(i * block, i * (size - block) // (blocks - 1)))
            crc = zlib.crc32(file.read(block), crc)
    return crc


def _build(folder: str, source: Source, tokenizer: Tokenizer, held_out: float) -> None:
    """Tokenises a source into a folder."""
    bar = tqdm.tqdm(
        desc=f"tokenising {source.spec}",
        total=source.size(),
        unit="B",
        unit_scale=True,
        delay=1,  # silent when it is quick
        leave=False,
    )
    with bar, contextlib.ExitStack() as stack:
        writers = {}
        for name in _SPLITS:
            file = stack.enter_context(open(os.path.join(folder, f"{name}.bin"), "wb"))
            writers[name] = _Writer(file, tokenizer)
        left = math.inf if source.max_tokens is None else source.max_tokens
        lost_bytes = 0
        for piece, length, ids in _encode(source.pieces(held_out), tokenizer):
            if len(ids) > left:
                ids = ids[: int(left)]
            else:
                lost_bytes += length - int(tokenizer.token_bytes[ids].sum())
            writers[_SPLITS[piece.held_out]].add(piece.document, ids)
            bar.update(length)
            left -= len(ids)
            if left <= 0:
                break
        splits = {name: writer.finish() for name, writer in writers.items()}
    if lost_bytes:
        _logger.warning(
            "%s: the tokenizer changes the text, its ids stand for %+d bytes; bits per byte count "
            "the bytes of the ids",
            source.spec,
            -lost_bytes,
        )
    for name, split in splits.items():
        split["checksum"] = _checksum(os.path.join(folder, f"{name}.bin"))
    meta = {
        "source": source.spec,
        "tokenizer": tokenizer.fingerprint,
        "held_out_fraction": held_out,
        "splits": splits,
    }
    with open(os.path.join(folder, "meta.json"), "w", encoding="utf-8") as meta_file:
        json.dump(meta, meta_file, indent=1)


class _Writer:
    """Writes the documents of one split, an end-of-text id before and after each."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer):
        self._file, self._tokenizer = file, tokenizer
        self._dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self._document: str | None = None
        self._tokens = self._documents = self._text_bytes = 0

    def add(self, document: str, ids: np.ndarray) -> None:
        """Appends ids to a document."""
        if document != self._document:
            self._document = document
            self._documents += 1
            self._write(np.array([self._tokenizer.eos_id]))
        self._write(ids)
        self._text_bytes += int(self._tokenizer.token_bytes[ids].sum())

    def finish(self) -> dict[str, Any]:
        """Ends the last document and returns the split's entry of meta.json."""
        if self._documents:
            self._write(np.array([self._tokenizer.eos_id]))
        return {
            "dtype": self._dtype.str,
            "tokens": self._tokens,
            "documents": self._documents,
            "text_bytes": self._text_bytes,
        }

    def _write(self, ids: np.ndarray) -> None:
        self._file.write(ids.astype(self._dtype).tobytes())
        self._tokens += len(ids)


def _encode(
    pieces: Iterator[Piece], tokenizer: Tokenizer
) -> Iterator[tuple[Piece, int, np.ndarray]]:
    """Yields every piece with the length of its UTF-8 and its ids."""
    for batch in _batches(pieces):
        lengths = [_utf8_length(piece) for piece in batch]
        ids = tokenizer.encode_batch([piece.text for piece in batch])
        yield from zip(batch, lengths, ids, strict=True)


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Groups pieces, so that a tokenizer can use its threads."""
    batch, chars = [], 0
    for piece in pieces:
        batch.append(piece)
        chars += len(piece.text)
        if chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _utf8_length(piece: Piece) -> int:
    try:
        return len(piece.text.encode())
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair
        raise InputError(
            f"document {piece.document}", piece.text[error.start], "valid Unicode text"
        ) from error


def _publish(built: str, folder: str) -> dict[str, TokenFile]:
    """Moves a complete store to its place, unless an intact one has appeared there."""
    if os.path.isdir(folder):
        if (files := _read(folder)) is not None:
            return files
        with contextlib.suppress(FileNotFoundError):  # another process has moved it
            os.rename(folder, built + "-damaged")
    try:
        os.rename(built, folder)
    except OSError:
        if not os.path.isdir(folder):  # else another process was first
            raise
    if (files := _read(folder)) is None:
        raise OSError(f"{folder} cannot be read back after it was written")
    return files
