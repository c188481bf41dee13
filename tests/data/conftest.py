"""Settings and small corpora that the data tests share."""

import random

import pytest

from mc_jax import data

WORDS = [
    *("the", "memory", "of", "a", "segment", "is", "kept", "and", "read", "again\n\tlater"),
    *("—", "größer,", "記憶,", "🐍", "", ""),
]


def make_text(seed: int, words: int) -> str:
    """Text with spaces in rows, tabs, newlines and characters of one to four bytes."""
    rng = random.Random(seed)
    return "".join(rng.choice(WORDS) + rng.choice([" ", " ", "  ", "\n"]) for _ in range(words))


@pytest.fixture
def config(tmp_path):
    """Small text batches, with a cache of the test's own."""
    config = data.default_config()
    config.cache_dir = str(tmp_path / "cache")
    config.length = 16
    config.batch_size = 4
    config.eval_batch_size = 4
    return config


@pytest.fixture
def documents():
    """Sixty documents with different texts."""
    return [make_text(seed, 5 + seed) for seed in range(60)]


@pytest.fixture
def corpus(tmp_path, documents):
    """A folder with one text file per document; returns the glob."""
    folder = tmp_path / "corpus"
    for i, text in enumerate(documents):
        file = folder / f"{i % 3}" / f"{i:02d}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
    return f"{folder}/**/*.txt"


@pytest.fixture
def use(config):
    """Points the config at text sources."""

    def use(*sources: str, weights=(), eval_sources=(), eval_fraction=0.0):
        config.sources, config.weights = sources, weights
        config.eval_sources, config.eval_fraction = eval_sources, eval_fraction
        return config

    return use
