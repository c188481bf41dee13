"""Plans of a small model on a pod that is not here."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from configs import tiny
from mc_jax.errors import InputError
from mc_jax.planning import Plan, describe, plan
from mc_jax.planning.activations import activation_bytes
from mc_jax.planning.chips import devices_of
from mc_jax.planning.cli import plan_command
from mc_jax.planning.report import advice
from mc_jax.sharding import make_mesh
from mc_jax.training.experiment import check
from mc_jax.training.functions import functions_of
from mc_jax.training.sharding import Shardings
from tests.kernels.tpu import needs_libtpu

pytestmark = needs_libtpu


def small(**mesh):
    config = tiny.get_config("mqar")
    config.model.update(vocab_size=64, dim=256, num_layers=1, num_heads=2, mlp_dim=256)
    config.model.dtype = "bfloat16"
    config.model.memory.update(segment_len=128, chunk_len=64)
    config.data.update(length=1024, batch_size=8, eval_batch_size=8)
    config.mesh.update(mesh)
    return check(config.lock(), read_data=False)


def test_a_plan_adds_up():
    experiment = small(data=1, fsdp=2, context=2)
    found = plan(experiment, "v5e:2x2")
    assert found.fits and found.devices == 4 and found.chip == "v5e"
    parts = found.memory
    # Three arrays of 4 bytes for 8 x 1,024 tokens, their 4 rows here padded to 8.
    batch = 2 * 3 * 4 * 8 * 1024 // 4
    assert batch < parts["batch"] < 2 * batch
    assert parts["parameters"] + parts["optimizer"] < parts["total"] < found.hbm
    # Two moments and a few counters; everything large is split over all four.
    assert 2 * parts["parameters"] < parts["optimizer"] < 2.1 * parts["parameters"]
    assert found.params < parts["parameters"] < 1.2 * found.params
    assert found.activations > 0
    assert "of them activations, at the most" in describe(found, experiment)
    # Memories, for the forward and for the backward pass.
    assert found.collectives["all-gather"][0] >= 2
    assert found.seconds["compute"] > 0 and found.seconds["network"] > 0
    # 819 GB/s, for the state to be read and written.
    state = parts["parameters"] + parts["optimizer"]
    assert found.seconds["state"] == pytest.approx(2 * state / 819e9, rel=0.02)
    assert found.least_seconds == max(
        found.seconds[name] for name in ("compute", "state", "network")
    )
    text = describe(found, experiment)
    assert "fits" in text and "fsdp=2 context=2" in text and "tokens/s" in text
    assert json.loads(json.dumps(found.to_json()))["fits"]


def test_what_does_not_fit_says_what_to_change(capsys, tmp_path):
    overrides = (
        *("--config.model.dim=8192", "--config.model.num_heads=64", "--config.model.mlp_dim=32768"),
        *("--config.model.num_layers=2", "--config.data.length=1024", "--config.mesh.data=4"),
        *("--config.model.memory.segment_len=128", "--config.model.memory.chunk_len=64"),
    )
    command = ["--config=configs/tiny.py:mqar", "--topology=v5e:2x2", *overrides]
    with pytest.raises(InputError, match="--json: found .*; allowed: a file in a folder that exis"):
        plan_command([*command, f"--json={tmp_path}/none/plan.json"])
    assert plan_command([*command, f"--json={tmp_path}/plan.json"]) == 1
    written = json.loads((tmp_path / "plan.json").read_text())
    assert not written["fits"] and written["memory"]["total"] > written["hbm"]
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text
    for change in ("scan_layers=True", "remat=full", "--config.mesh.fsdp=4", "more devices"):
        assert change in text


def test_advice_can_be_followed():
    """With attention no context; with an odd number of rows no more microbatches."""
    experiment = small(data=1, fsdp=4)
    full = Plan(
        **dict(topology="v5e:2x2", chip="v5e", devices=4, params=1, tokens=1, steps=1),
        **dict(
            mesh=experiment.mesh.sizes(4), hbm=1, memory={"total": 2}, activations=0, collectives={}
        ),
        **dict(flops={}, seconds={}, seconds_to_compile=0.0),
    )
    said = "\n".join(advice(full, experiment))
    assert "mesh.context=N" in said and "train.grad_accum=2" in said
    model = dataclasses.replace(experiment.model, pattern=("sliding",))
    config = ConfigDict(experiment.config)
    with config.unlocked():
        config.data.batch_size = 12
    said = "\n".join(advice(full, experiment._replace(model=model, config=config)))
    assert "mesh.context" not in said and "grad_accum" not in said and "remat=full" in said


@pytest.mark.parametrize("topology", ["v9:2x2", "v5p:3x3", "v5e"])
def test_topologies_that_do_not_exist(topology):
    with pytest.raises(InputError, match=f"--topology: found '{topology}'; allowed: CHIP:SHAPE"):
        plan(small(), topology)


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_activations(grad_accum):
    """With remat the stream before each block, and what the head and the loss keep."""
    sizes = []
    for layers in (2, 3):
        config = ConfigDict(small(data=1, fsdp=2, context=2).config)
        with config.unlocked():
            config.model.update(num_layers=layers, remat="full")
            config.train.grad_accum = grad_accum
        experiment = check(config, read_data=False)
        shardings = Shardings(make_mesh(experiment.mesh, devices_of("v5e:2x2")))
        params = functions_of(experiment, shardings, None).state.params
        sizes.append(activation_bytes(experiment, shardings, params))
    # One block more: bfloat16, 256 wide, 8 x 1,024 tokens on four devices.
    assert sizes[1] - sizes[0] == 2 * 256 * 8 * 1024 // 4 // grad_accum
