"""Two devices that share each batch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mc_jax.errors import InputError
from mc_jax.training import train
from mc_jax.training.metrics import read
from mc_jax.training.sharding import check_batch_size

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("compile_once")
def test_two_devices_do_what_one_does(config, tmp_path, monkeypatch):
    """Also with microbatches, whose rows lie on both devices."""
    with config.unlocked():
        config.train.update(steps=4, grad_accum=2)
    train(config, tmp_path / "one")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    flags = [f"--config.{section}.{key}={config[section][key]}" for section, key in (
        ("model", "vocab_size"), ("model", "num_layers"), ("model", "dim"), ("model", "mlp_dim"),
        ("data", "length"), ("train", "steps"), ("train", "grad_accum"),
    )]  # fmt: skip
    command = [sys.executable, "train.py", "--config=configs/tiny.py:mqar", *flags]
    run = subprocess.run(
        [*command, f"--workdir={tmp_path / 'two'}"], cwd=ROOT, capture_output=True, text=True
    )
    assert "2 x cpu" in run.stdout, run.stderr
    one, two = (read(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for key in ("loss", "grad_norm", "held_out_loss"):
        values = [[record[key] for record in records if key in record] for records in (one, two)]
        np.testing.assert_allclose(*values, rtol=2e-5, err_msg=key)


def test_a_batch_that_does_not_split_is_refused():
    check_batch_size("data.batch_size", 24, ways=4, microbatches=3)
    with pytest.raises(InputError, match="data.batch_size: found 20; allowed: a multiple of 12"):
        check_batch_size("data.batch_size", 20, ways=4, microbatches=3)
