"""Haystacks: the text in which a needle is hidden.

A haystack is a text that is read in a circle, so that it fills any length, and the places in it at
which a sentence starts, before which a needle can stand.
"""

import functools
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mc_jax.data import sources
from mc_jax.errors import InputError

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

# Characters of essays that are used; the rest of longer ones is left.
MOST = 4_000_000
_SENTENCE_END = re.compile(r"[.!?][\"')\]]* ")


class Haystack(NamedTuple):
    """A text to fill up with.

    Attributes:
      text: read in a circle; it ends with a gap.
      gap: what stands between two sentences, and around a needle.
      starts: where sentences start [count], from 0 on.
    """

    text: str
    gap: str
    starts: np.ndarray

    def before(self, start: int, characters: int) -> str:
        """The characters that lead up to a place."""
        return self.after(start - characters, characters)

    def after(self, start: int, characters: int) -> str:
        """The characters from a place on."""
        start %= len(self.text)
        rounds = -(-(start + characters) // len(self.text))
        return (self.text * rounds)[start : start + characters]

    def opening(self, sentences_of: str, parts: int) -> list[str]:
        """The first sentences, as RULER takes them: of so many words, or so many lines.

        Args:
          sentences_of: "words" (of essays) or "lines" (of noise).
          parts: how many of them.
        """
        if sentences_of == "lines":
            return [self.text[: -len(self.gap)]] * parts
        words = self.text.split(" ", parts)[:parts]
        words = words if words[-1:] != [""] else words[:-1]  # the text ends with a gap
        rounds = -(-parts // max(1, len(words)))
        return split_sentences(" ".join((words * rounds)[:parts]))


def noise() -> Haystack:
    """RULER's noise: the same five sentences on every line."""
    return Haystack(NOISE + "\n", "\n", np.array([0]))


def essays(spec: str, field: str) -> Haystack:
    """Reads essays, all white space as single spaces.

    Args:
      spec: a text file, a folder of .txt files, or a source as in `data.sources`.
      field: the setting that names it, for messages.

    Raises:
      InputError: text that is missing, empty, not UTF-8, or has no sentences.
    """
    source = sources.parse(_as_source(spec), field)
    return _read(source.spec, field, repr(source.identity()))


def split_sentences(text: str) -> list[str]:
    """The sentences of a text in which all white space is single spaces."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    edges = [0, *ends, len(text)]
    pieces = (text[start:end].rstrip(" ") for start, end in zip(edges, edges[1:], strict=False))
    return [piece for piece in pieces if piece]


def _as_source(spec: str) -> str:
    """A source's name; a plain path becomes one."""
    if spec.partition(":")[0] in sources.KINDS:
        return spec
    path = Path(os.path.expanduser(spec))
    # A "?" or "*" in the name of a file is just that.
    escaped = re.sub(r"([*?[])", r"[\1]", str(path))
    return f"files:{escaped}/**/*.txt" if path.is_dir() else f"files:{escaped}"


@functools.lru_cache(maxsize=4)
def _read(spec: str, field: str, identity: str) -> Haystack:
    """Reads a source once, as long as its files stay the same."""
    del identity
    pieces, size = [], 0
    for piece in sources.parse(spec, field).pieces(held_out=0.0):
        pieces.append(piece.text)
        size += len(piece.text)
        if size >= MOST:
            break
    text = " ".join(" ".join(pieces).split())[:MOST]
    starts = [match.end() for match in _SENTENCE_END.finditer(text + " ")]
    if not starts:
        found = f"{spec} with {len(text):,} characters and no end of a sentence"
        raise InputError(field, found, "text with sentences, which end in '.', '!' or '?'")
    # The last one ends the text: what follows it is the start.
    return Haystack(text + " ", " ", np.array(starts) % (len(text) + 1))
