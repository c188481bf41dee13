"""Kernels of a GPU on a machine without one: their steps one by one, and their lowering."""

import functools

import jax
import pytest
from jax import export
from jax.experimental import pallas as pl

from mc_jax.device import described

TRITON = export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")


def on_a_gpu():
    """A context in which programs are made for a GPU."""
    return described("gpu")


def lowered(function, *args) -> str:
    """The program of `function` for a GPU, with Triton's kernels inside; nothing is run."""
    with on_a_gpu():
        exported = export.export(jax.jit(function), platforms=["cuda"], disabled_checks=[TRITON])
        return exported(*args).mlir_module()


@pytest.fixture
def imitated_gpu(monkeypatch):
    """A context in which a GPU's programs run here, their kernels' steps in Python."""
    real = pl.pallas_call

    @functools.wraps(real)
    def imitated(*args, **options):
        return real(*args, **options | {"interpret": True, "compiler_params": None})

    monkeypatch.setattr(pl, "pallas_call", imitated)
    return on_a_gpu
