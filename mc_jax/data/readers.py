"""Readers of the file formats: each yields the documents of one file, never the whole file.

A reader yields `(row, text)`; consecutive items of the same row continue one document.

  files        UTF-8 text; the file is one document (row 0).
  jsonl        one JSON object per line with the text in `field`; blank lines are skipped; a name
               that ends in .gz is decompressed.
  parquet      one document per row, in the string column `field`.
  arrayrecord  one document per record: UTF-8 text, or with `field` a JSON object that holds it.
  hf           one document per row of a Hugging Face dataset, streamed.
"""

import codecs
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from mc_jax.errors import InputError

Documents = Iterator[tuple[int, str]]
_BLOCK = 1 << 20  # bytes of a text file, or rows' worth of text, held at a time


def read_text(path: str, start: int = 0, stop: int | None = None) -> Documents:
    """Yields the text of a file's bytes [start, stop), in pieces that end at a line's end."""
    stop = os.path.getsize(path) if stop is None else stop
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest, position = "", start
    with open(path, "rb") as file:
        file.seek(start)
        while block := file.read(min(_BLOCK, stop - position)):
            position += len(block)
            try:
                text = rest + decoder.decode(block, final=position == stop)
            except UnicodeDecodeError as error:
                offset = position - len(error.object) + error.start
                raise _not_utf8(f"{path}, byte {offset}", error) from error
            head, newline, rest = text.rpartition("\n")
            if not newline:  # a very long line
                head, rest = rest, ""
            yield 0, head + newline
    if rest:
        yield 0, rest


def character_boundary(path: str, position: int) -> int:
    """Returns the first byte at or after `position` that starts a UTF-8 character."""
    with open(path, "rb") as file:
        file.seek(position)
        following = file.read(4)
    return position + next((i for i, byte in enumerate(following) if byte & 0xC0 != 0x80), 0)


def read_jsonl(path: str, field: str) -> Documents:
    """Yields the string `field` of every line of a JSONL file."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}:{number}"
                    yield number, _text_of(_json_object(line, where), field, where)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(path, str(error), "an intact gzip file") from error


def read_parquet(path: str, field: str) -> Documents:
    """Yields the string column `field` of a Parquet file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            path, "no module pyarrow", "install it to read Parquet (pip install pyarrow)"
        ) from error
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            if field not in file.schema_arrow.names:
                raise _missing(path, field, file.schema_arrow.names)
            row = 0
            for batch in file.iter_batches(batch_size=64, columns=[field]):
                for text in batch.column(0).to_pylist():
                    yield row, _string(text, field, f"{path}, row {row}")
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(path, _first_line(error), "a readable Parquet file") from error


def read_array_record(path: str, field: str | None) -> Documents:
    """Yields the records of an ArrayRecord file."""
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise InputError(
            path, "no module array_record", "install it (pip install array_record)"
        ) from error
    try:
        reader = ArrayRecordReader(path)
        if not reader.ok():
            raise InputError(path, "a broken or empty file", "a readable ArrayRecord file")
        for row in range(reader.num_records()):
            record = reader.read()
            where = f"{path}, record {row}"
            if field is None:
                yield row, _decode(record, where)
            else:
                yield row, _text_of(_json_object(record, where), field, where)
        reader.close()  # not on a broken file: it would raise the same error again
    except RuntimeError as error:
        raise InputError(path, _first_line(error), "a readable ArrayRecord file") from error


def read_hf(name: str, config: str | None, split: str, field: str) -> Documents:
    """Yields the string column `field` of a Hugging Face dataset, by name or local folder."""
    where = f"hf:{name}" + (f":{config}" if config else "")
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            where, "no module datasets", "install it (pip install datasets)"
        ) from error
    try:
        rows = datasets.load_dataset(name, config, split=split, streaming=True)
        for row, example in enumerate(rows):
            yield row, _text_of(example, field, f"{where}, row {row}")
    except InputError:
        raise
    except Exception as error:  # the library raises many kinds for one cause: it cannot be had
        raise InputError(
            where,
            _first_line(error),
            "a dataset, configuration and split that exist, and a network to fetch them; "
            "without one: data.sources=stdlib, or a local files:, jsonl: or parquet: source",
        ) from error


def _json_object(data: bytes, where: str) -> Mapping[str, Any]:
    text = _decode(data, where)
    shown = text.strip()[:60]
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            where, shown, f"a JSON object on one line ({error.msg} at column {error.colno})"
        ) from error
    if not isinstance(value, dict):
        raise InputError(where, shown, "a JSON object on one line")
    return value


def _text_of(example: Mapping[str, Any], field: str, where: str) -> str:
    if field not in example:
        raise _missing(where, field, list(example))
    return _string(example[field], field, where)


def _string(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(where, value, f"a string in the field {field!r}")
    return value


def _missing(where: str, field: str, names: list[str]) -> InputError:
    known = ", ".join(map(repr, names)) or "none"
    return InputError(where, f"no field {field!r}", f"?field= one of the fields here: {known}")


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{where}, byte {error.start}", error) from error


def _not_utf8(where: str, error: UnicodeDecodeError) -> InputError:
    found = error.object[error.start : error.start + 4]
    return InputError(where, found, f"UTF-8 text ({error.reason})")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
