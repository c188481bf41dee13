"""Shared by every test: the x64 fixture and the hypothesis profile."""

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=5)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def x64():
    """float64 inside this test only; everything else runs as users run it."""
    with jax.enable_x64(True):
        yield
