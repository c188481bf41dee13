"""Shared by every test: quick compiling, the x64 fixture and the hypothesis profile."""

import os

import hypothesis
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.compiling import QUICK

# Of the programs that tests start, too. JAX reads it when it first looks for devices.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), *(f"--{name}={value}" for name, value in QUICK.items())]
)

# Programs that tests start need not start again for it (`mc_jax.allocator`).
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=3)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="the tests that are marked as rare, too")


def pytest_collection_modifyitems(config, items):
    """Long tests first; rare ones with `--all` only."""
    if not config.getoption("--all"):
        rare = [item for item in items if item.get_closest_marker("rare")]
        config.hook.pytest_deselected(items=rare)
        items[:] = [item for item in items if not item.get_closest_marker("rare")]
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture
def x64():
    """float64 inside this test only; everything else runs as users run it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def compiled_programs(tmp_path_factory):
    """A folder that compiled programs are kept in."""
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def compile_once(compiled_programs):
    """Take programs that an earlier test has compiled from the folder."""
    settings = {
        "jax_compilation_cache_dir": compiled_programs,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield
