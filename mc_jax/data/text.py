"""Tokenised text as training and evaluation examples: windows over the concatenated documents."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from mc_jax.data import sources, store, tokenizers
from mc_jax.data.config import Config
from mc_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Windows(Sequence):
    """Random access to the consecutive windows of a token file.

    Window i reads tokens [i * length, (i + 1) * length] and predicts each from those before it, so
    the windows together predict every token but the first exactly once. A document may begin or
    end anywhere in a window.

    Attributes:
      file: the tokens.
      length: tokens read by one window.
      pad: whether a last, shorter window is filled up with weight 0, or left out.
    """

    file: store.TokenFile
    length: int
    pad: bool

    @functools.cached_property
    def _tokens(self) -> np.ndarray:
        return self.file.map()

    def __getstate__(self):
        # A worker process maps the file itself: pickling a map would copy the corpus.
        return {key: value for key, value in self.__dict__.items() if key != "_tokens"}

    def __len__(self):
        predicted = max(0, self.file.tokens - 1)
        return -(-predicted // self.length) if self.pad else predicted // self.length

    def __getitem__(self, index):
        """Returns {"inputs", "targets": int32 [length], "weights": float32 [length]}."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        window = np.zeros(self.length + 1, np.int32)
        found = self._tokens[index * self.length : (index + 1) * self.length + 1]
        window[: len(found)] = found
        weights = np.arange(self.length, dtype=np.int32) < len(found) - 1
        return {
            "inputs": window[:-1],
            "targets": window[1:],
            "weights": weights.astype(np.float32),
        }


def train_windows(config: Config) -> tuple[list[Windows], list[float]]:
    """Returns the training windows of every source and the share of each in a batch.

    Raises:
      InputError: a source that cannot be used, or is shorter than one window.
    """
    held_out = 0.0 if config.eval_sources else config.eval_fraction
    windows = []
    for field, spec, files in _stores(config, "sources", held_out):
        windows.append(Windows(files["train"], config.length, pad=False))
        if not windows[-1]:
            raise InputError(
                field,
                f"{spec} with {files['train'].tokens} training tokens",
                f"at least data.length + 1 = {config.length + 1} tokens",
            )
    return windows, [float(w) for w in config.weights or map(len, windows)]


def eval_windows(config: Config) -> list[Windows]:
    """Returns the held-out windows of every source; a last short one is padded.

    Raises:
      InputError: a source that cannot be used, or no held-out document at all.
    """
    if config.eval_sources:
        key, held_out = "eval_sources", 1.0
    else:
        key, held_out = "sources", config.eval_fraction
    stores = _stores(config, key, held_out)
    windows = [Windows(files["held_out"], config.length, pad=True) for _, _, files in stores]
    windows = [part for part in windows if part]
    if not windows:
        raise InputError(
            "data.eval_fraction",
            config.eval_fraction,
            f"a fraction at which some document of {tuple(config[key])} is held out, or "
            "data.eval_sources with other text",
        )
    return windows


def _stores(
    config: Config, key: str, held_out: float
) -> Iterator[tuple[str, str, dict[str, store.TokenFile]]]:
    """Yields the config field, the spec and the token files of every source."""
    tokenizer = tokenizers.load(config.tokenizer)
    parsed = {
        name: [sources.parse(spec, f"data.{name}[{i}]") for i, spec in enumerate(config[name])]
        for name in ("sources", "eval_sources")
    }
    for source in itertools.chain(*parsed.values()):
        source.files()  # a misspelt path of any source is found before the first is tokenised
    for source in parsed[key]:
        files = store.open_store(source, tokenizer, held_out, config.cache_dir)
        yield source.field, source.spec, files
