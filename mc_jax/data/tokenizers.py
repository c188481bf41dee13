"""Tokenizers: text to ids and back, and how many bytes of text each id stands for.

All of them are exact: no space is put in front of a text, text that looks like a special token is
read as plain text, and no special token is added. So the sum of `token_bytes` over the ids of a
text is the length of its UTF-8, unless the tokenizer's own model normalises text (NFKC, say), and
bits per byte can be compared between tokenizers.
"""

import functools
import hashlib
import importlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mc_jax.errors import InputError

_FIELD = "data.tokenizer"
_KINDS = "'bytes', 'sentencepiece:/path/x.model' or 'hf:/path/tokenizer.json'"
_END_OF_TEXT = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>")
# Decoders under which the pieces of a text, joined, are that text.
_SPELLING_DECODERS = {"ByteLevel", "Metaspace", "ByteFallback", "Fuse", "Replace", "Strip"}


class Tokenizer(Protocol):
    """What the rest of the package needs of a tokenizer.

    Attributes:
      vocab_size: number of ids, `eos_id` included.
      eos_id: the id between documents.
      token_bytes: int32 [vocab_size], bytes of UTF-8 that each id stands for; 0 for specials.
      fingerprint: changes when the ids of any text would change.
    """

    vocab_size: int
    eos_id: int
    token_bytes: np.ndarray
    fingerprint: str

    def encode(self, text: str) -> np.ndarray:
        """Returns the int32 ids of a text, without specials."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the int32 ids of every text."""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, specials left out."""


def load(spec: str) -> Tokenizer:
    """Returns the tokenizer that `config.data.tokenizer` names.

    Raises:
      InputError: an unknown kind, a missing or broken file, or a library that is not installed.
    """
    kind, _, path = spec.partition(":")
    if spec == "bytes":
        return ByteTokenizer()
    if kind not in ("sentencepiece", "hf") or not path:
        raise InputError(_FIELD, spec, _KINDS)
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise InputError(_FIELD, spec, "a file that exists")
    return _load_file(kind, path, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _load_file(kind: str, path: str, mtime: int) -> Tokenizer:
    """Loads a file once: a large vocabulary takes a second."""
    del mtime
    data = Path(path).read_bytes()
    return (SentencePieceTokenizer if kind == "sentencepiece" else HFTokenizer)(data, path)


class ByteTokenizer:
    """The 256 bytes of UTF-8, and 256 as the end of a document."""

    vocab_size = 257
    eos_id = 256
    fingerprint = "bytes"
    token_bytes = np.array([1] * 256 + [0], np.int32)

    def encode(self, text: str) -> np.ndarray:
        """Returns the bytes of a text."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the bytes of every text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; bytes that are no UTF-8 become U+FFFD."""
        return bytes(i for i in map(int, ids) if i < self.eos_id).decode(errors="replace")


class SentencePieceTokenizer:
    """A SentencePiece model file."""

    def __init__(self, data: bytes, path: str):
        library = _library("sentencepiece")
        # A protocol buffer merges what is appended to it: this sets
        # normalizer_spec.add_dummy_prefix = false, so that no space precedes a text,
        no_prefix = b"\x1a\x02\x18\x00"
        # and this remove_extra_whitespaces = false, so that a decoded text keeps its first space.
        keep_spaces = b"\x1a\x02\x20\x00"
        try:
            self._model = library.SentencePieceProcessor(model_proto=data + no_prefix)
            self._decoder = library.SentencePieceProcessor(
                model_proto=data + no_prefix + keep_spaces
            )
            size = self._model.get_piece_size()
        except RuntimeError as error:
            raise InputError(_FIELD, path, "a SentencePiece model; this file is none") from error
        lengths = [self._bytes_of(i) for i in range(size)]
        self.eos_id, self.token_bytes = _with_end_of_text(self._model.eos_id(), lengths)
        self.vocab_size = len(self.token_bytes)
        self.fingerprint = "sentencepiece-" + hashlib.blake2b(data, digest_size=16).hexdigest()

    def _bytes_of(self, token: int) -> int:
        model = self._model
        if model.is_control(token) or model.is_unknown(token) or model.is_unused(token):
            return 0
        return 1 if model.is_byte(token) else _utf8_length(model.id_to_piece(token))

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text."""
        return np.array(self._model.encode(text), np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of every text."""
        return [np.array(ids, np.int32) for ids in self._model.encode(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids."""
        return self._decoder.decode(_known(ids, self))


class HFTokenizer:
    """A `tokenizer.json` of the Hugging Face `tokenizers` library."""

    def __init__(self, data: bytes, path: str):
        library = _library("tokenizers")
        try:
            spec = json.loads(data)
            decoders = set(_decoder_types(spec["decoder"]))
            self._model = library.Tokenizer.from_str(json.dumps(_without_prefix_space(spec)))
        except Exception as error:  # the library raises plain Exception for a broken file
            raise InputError(_FIELD, path, f"a tokenizer.json ({error!r:.80})") from error
        if not decoders or not decoders <= _SPELLING_DECODERS:
            raise InputError(
                _FIELD,
                f"{path} with the decoder {sorted(decoders)}",
                "a byte-level, Metaspace or byte-fallback tokenizer: others lose spaces",
            )
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True  # specials in a text are plain text
        vocabulary = self._model.get_vocab()
        lengths = [0] * (max(vocabulary.values()) + 1)
        added = self._model.get_added_tokens_decoder()
        for piece, token in vocabulary.items():
            if token in added:
                lengths[token] = 0 if added[token].special else len(added[token].content.encode())
            elif "ByteLevel" in decoders:
                lengths[token] = len(piece)  # one character stands for one byte
            else:
                lengths[token] = 1 if _is_byte_piece(piece) else _utf8_length(piece)
        known = (vocabulary[piece] for piece in _END_OF_TEXT if piece in vocabulary)
        self.eos_id, self.token_bytes = _with_end_of_text(next(known, -1), lengths)
        self.vocab_size = len(self.token_bytes)
        self.fingerprint = "hf-" + hashlib.blake2b(data, digest_size=16).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text."""
        return np.array(self._model.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of every text."""
        encodings = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids."""
        return self._model.decode(_known(ids, self))


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            _FIELD, f"no module {name}", f"install it (pip install {name}), or 'bytes'"
        ) from error


def _with_end_of_text(token: int, lengths: list[int]) -> tuple[int, np.ndarray]:
    """Returns (eos_id, token_bytes), with one more id where the vocabulary marks no end."""
    if token < 0:
        token, lengths = len(lengths), [*lengths, 0]
    lengths[token] = 0
    return token, np.array(lengths, np.int32)


def _known(ids: Iterable[int], tokenizer: Tokenizer) -> list[int]:
    """Leaves out the end of a document and what a padded model vocabulary adds."""
    return [i for i in map(int, ids) if i != tokenizer.eos_id and i < tokenizer.vocab_size]


def _utf8_length(piece: str) -> int:
    return len(piece.replace("\u2581", " ").encode())  # U+2581 is how pieces write a space


def _is_byte_piece(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _decoder_types(decoder: dict[str, Any] | None) -> list[str]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [kind for part in decoder["decoders"] for kind in _decoder_types(part)]
    return [decoder["type"]]


def _without_prefix_space(part: Any) -> Any:
    """Returns a tokenizer.json that puts no space before a text and takes none away after.

    Four parts do so: ByteLevel and old Metaspace (`add_prefix_space`), Metaspace
    (`prepend_scheme`), the normalizer Prepend, and the decoder Strip that undoes it.
    """
    if isinstance(part, list):
        return [kept for child in part if (kept := _without_prefix_space(child)) is not None]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend" or (part.get("type") == "Strip" and "start" in part):
        return None
    # A vocabulary has nothing to change and is large.
    out = {k: v if k == "model" else _without_prefix_space(v) for k, v in part.items()}
    if "add_prefix_space" in out:
        out["add_prefix_space"] = False
    if "prepend_scheme" in out:
        out["prepend_scheme"] = "never"
    return out
