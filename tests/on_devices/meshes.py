"""A training run is the same whatever mesh it is on.

Run on eight devices, by tests/training/test_mesh.py. By itself, with every mesh:

    export XLA_FLAGS=--xla_force_host_platform_device_count=8
    python -m pytest tests/on_devices/meshes.py --all
"""

import functools
import itertools
import math
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import tiny
from mc_jax import data
from mc_jax.errors import InputError
from mc_jax.sharding import MeshConfig, make_mesh
from mc_jax.sharding.config import AXES
from mc_jax.training import train
from mc_jax.training.experiment import check, check_devices
from mc_jax.training.functions import functions_of
from mc_jax.training.metrics import read
from mc_jax.training.sharding import Shardings, to_devices
from tests.rare import param

STEPS = 10
# Of a model's memories each layer has its own program to compile.
ONE_LAYER = (("num_layers", 1),)
MESHES = [
    sizes
    for sizes in itertools.product((1, 2, 4, 8), repeat=len(AXES))
    if math.prod(sizes) in (2, 4, 8)
]
# The longest run of one axis, and of the axes that share more than gradients all together.
OFTEN = [(1, 1, 8, 1), (1, 2, 2, 2)]
# Every kind of memory, on meshes of all axes.
KINDS = [
    param("swla", "soup", "gather", rare=False),
    param("dla", "grm", "ring", rare=False),
    param("linear", "none", "gather", rare=True),
    param("titans", "residual", "gather", rare=True),
]


def experiment(sizes, rule="linear", aggregation="grm", exchange="gather", model=()):
    config = tiny.get_config("mqar")
    config.model.update(vocab_size=64, num_layers=2, dim=64, num_heads=8, mlp_dim=64)
    config.model.memory.update(rule=rule, aggregation=aggregation, exchange=exchange)
    config.model.memory.update(segment_len=4, chunk_len=4)
    config.model.update_from_flattened_dict(dict(model))
    config.data.update(length=32, batch_size=16, eval_batch_size=16)
    config.data.mqar.update(vocab_size=64, pairs=(8,), eval_pairs=(8,))
    config.train.update(steps=STEPS, grad_accum=2, learning_rate=1e-3)
    config.mesh.update(dict(zip(AXES, sizes, strict=True)))
    return check(ConfigDict(config).lock())


@functools.cache
def run(sizes, *kind):
    """Losses and norms of gradients [steps, 2]."""
    found = experiment(sizes, *kind)
    devices = jax.devices()[: math.prod(sizes)]
    check_devices(found, len(devices))
    shardings = Shardings(make_mesh(found.mesh, devices))
    functions = functions_of(found, shardings, None)
    train_step, state = shardings.on_mesh(functions.train_step), functions.initialise()
    batches = data.train_iterator(found.config.data, seed=0)
    metrics = []
    for _ in range(STEPS):
        state, values = train_step(state, to_devices(next(batches), shardings.batch))
        metrics.append([float(values["loss"]), float(values["grad_norm"])])
    batches.close()
    return np.array(metrics)


def check_same(sizes, *kind):
    split, whole = run(sizes, *kind), run((1, 1, 1, 1), *kind)
    np.testing.assert_allclose(split[:, 0], whole[:, 0], rtol=1e-5)
    # Of the first step alone: where a head's output is near 0 its norm makes much of rounding.
    np.testing.assert_allclose(split[0, 1], whole[0, 1], rtol=1e-5)


@pytest.mark.parametrize(
    "sizes", [param(x, rare=x not in OFTEN, id="x".join(map(str, x))) for x in MESHES]
)
def test_same_losses(sizes):
    check_same(sizes)


@pytest.mark.parametrize(("rule", "aggregation", "exchange"), KINDS)
def test_same_losses_with_every_memory(rule, aggregation, exchange):
    check_same((1, 2, 2, 2), rule, aggregation, exchange, ONE_LAYER)


@pytest.mark.parametrize(
    ("sizes", "model"),
    [
        ((1, 2, 2, 2), (("scan_layers", True), ("remat", "full"))),
        ((2, 2, 1, 2), (("pattern", ("sliding", "attention")), ("tie_embeddings", False))),
        ((1, 2, 4, 1), (("memory.placement", "zigzag"), *ONE_LAYER)),
    ],
)
def test_same_losses_with_other_models(sizes, model):
    check_same(sizes, "linear", "grm", "ring", model)


def test_one_step_of_ssc():
    """One, since a memory that scores as another may be selected in its place after rounding."""
    kind = ("linear", "ssc", "ring", ONE_LAYER)
    split, whole = run((1, 2, 2, 2), *kind), run((1, 1, 1, 1), *kind)
    np.testing.assert_allclose(split[0], whole[0], rtol=1e-5)


@pytest.fixture
def six_steps(tmp_path):
    """Workdir of six steps on one mesh, as if the run had been killed in the fifth."""
    train(six((1, 2, 2, 2)), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    return tmp_path


def six(sizes):
    config = ConfigDict(experiment(sizes).config)
    with config.unlocked():
        config.train.update(steps=6, checkpoint_every=3, tensorboard=False)
    return config


def test_a_run_goes_on_with_another_mesh(six_steps):
    def losses():
        return [record["loss"] for record in read(six_steps / "metrics.jsonl")]

    before = losses()
    train(six((4, 1, 1, 2)), six_steps)
    after = losses()
    assert after[:3] == before[:3] and len(after) == 6
    np.testing.assert_allclose(after, before, rtol=1e-5)
    # What only one of the devices that wrote it had.
    shutil.rmtree(six_steps / "checkpoints" / "6")
    shard = max(
        (six_steps / "checkpoints" / "3").glob("state/**/d/*"), key=lambda x: x.stat().st_size
    )
    shard.unlink()
    with pytest.raises(InputError, match="checkpoints/3: found .*is missing or has changed"):
        train(six((4, 1, 1, 2)), six_steps)


def test_everything_large_is_split():
    sizes = (1, 2, 2, 2)
    found = experiment(sizes, "titans")
    state = functions_of(found, Shardings(make_mesh(found.mesh)), None).initialise()
    whole = [
        jax.tree_util.keystr(path)
        for path, x in jax.tree_util.tree_leaves_with_path(state)
        if x.size > 512 and x.sharding.is_fully_replicated
    ]
    assert not whole
    kernel = state.params["layers_0"]["block_0"]["mlp"]["in"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (64 // 4, 2, 64 // 2)
    assert state.opt_state[1][0].mu["embedding"].sharding == state.params["embedding"].sharding


@pytest.mark.parametrize(
    ("sizes", "change", "message"),
    [
        ((3, 1, 1, 1), {}, "mesh: found 'data=3 = 3 devices'; allowed: a product of 8"),
        ((-1, 3, 1, 1), {}, "mesh: found 'fsdp=3 = 3 devices'; allowed: a product that divides"),
        ((1, 1, 1, 8), {"num_heads": 4}, "model.num_heads: found 4; allowed: a multiple of mesh.t"),
        ((1, 4, 2, 1), {"dim": 68, "num_heads": 2}, "model.dim: found 68; allowed: a multiple"),
        ((4, 1, 2, 1), {"pattern": ("memory", "attention")}, "mesh.context: found 2; allowed: 1"),
        ((2, 1, 4, 1), {"memory.segment_len": 16}, "'8 tokens on a device'; allowed: whole segm"),
        (
            (1, 1, 8, 1),
            {"memory.placement": "zigzag"},
            "'4 tokens on a device'; allowed: whole seg",
        ),
        ((1, 1, 8, 1), {"memory.conv_width": 6}, "'4 tokens on a device'; allowed: at least the 5"),
        (
            (1, 1, 8, 1),
            {"memory.exchange": "ring", "memory.segmentation": "logarithmic"},
            "model.memory.exchange: found 'ring'; allowed: gather",
        ),
        (
            (1, 1, 8, 1),
            {"memory.rule": "dla", "memory.segmentation": "logarithmic"},
            "model.memory.segmentation: found 'logarithmic'; allowed: constant",
        ),
        (
            (1, 1, 8, 1),
            {"memory.implementation": "recurrent"},
            "model.memory.implementation: found 'recurrent'; allowed: a chunk-parallel one",
        ),
        ((8, 1, 1, 1), {}, "data.batch_size: found 20; allowed: a multiple of 16"),
        ((-1, -1, 1, 1), {}, "mesh: found 'data=-1, fsdp=-1'; allowed: -1 for one axis"),
        ((0, 1, 1, 1), {}, "mesh.data: found 0; allowed: an integer >= 1, or -1"),
    ],
)
def test_refusals(sizes, change, message):
    config = ConfigDict(experiment((1, 1, 1, 1)).config)
    with config.unlocked():
        config.model.update_from_flattened_dict(change)
        config.data.batch_size = 20 if sizes == (8, 1, 1, 1) else 16
        config.mesh.update(dict(zip(AXES, sizes, strict=True)))
    with pytest.raises(InputError, match=message):
        check_devices(check(config), 8)


def test_one_axis_takes_what_is_left():
    sizes = MeshConfig(data=2, fsdp=-1, tensor=2).sizes(8)
    assert sizes == {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
