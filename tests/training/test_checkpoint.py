"""What is kept, that it comes back as it was, and what a damaged step says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mc_jax.errors import InputError
from mc_jax.training import checksums, load
from mc_jax.training.checkpoint import Checkpoints
from mc_jax.training.sharding import data_parallel
from mc_jax.training.state import TrainState

LOSSES = {10: 3.0, 20: 1.0, 30: 2.0, 40: None, 50: 2.5}


def state_of(step):
    params = {"w": jnp.full((3, 2), step, jnp.float32), "b": jnp.arange(4.0) + step}
    return TrainState(jnp.int32(step), params, (jnp.float32(step) / 3, ()))


@pytest.fixture
def workdir(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step, loss in LOSSES.items():
        measured = {} if loss is None else {"held_out_loss": loss}
        config = {"model": {"dim": step}}
        checkpoints.save(step, state_of(step), {"next_batch": step}, config, **measured)
    checkpoints.close()
    return tmp_path


def test_the_best_and_the_latest_are_kept_as_they_were(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints", keep=2)
    assert checkpoints.steps == [20, 40, 50]
    assert (checkpoints.best, checkpoints.latest) == (20, 50)
    shapes = jax.eval_shape(lambda: state_of(0))
    target = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        data_parallel().state(shapes),
    )
    for step in checkpoints.steps:
        state, data = checkpoints.restore(step, target)
        assert jax.tree.structure(state) == jax.tree.structure(shapes)
        jax.tree.map(np.testing.assert_array_equal, state, state_of(step))
        assert data == {"next_batch": step}
        assert checkpoints.config(step) == {"model": {"dim": step}}
    checkpoints.close()


def test_load(workdir):
    for which, step in (("best", 20), ("latest", 50), (40, 40)):
        saved = load(workdir, which)
        assert (saved.step, saved.config.model.dim) == (step, step)
        jax.tree.map(np.testing.assert_array_equal, saved.params, state_of(step).params)
    with pytest.raises(InputError, match=r"checkpoint: found 30; allowed: .*\[20, 40, 50\]"):
        load(workdir, 30)
    with pytest.raises(InputError, match="workdir: found .*nowhere"):
        load(workdir / "nowhere")


def _parts(folder):
    """One file of every kind: state, data, config, held-out loss, checksums."""
    arrays = max(folder.glob("state/**/d/*"), key=lambda path: path.stat().st_size)
    named = ["data/metadata", "config/metadata", "metrics/metrics", "checksums.json"]
    return [arrays, *(folder / name for name in named)]


@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("damage", ["cut", "gone", "bit"])
def test_a_damaged_step_names_the_one_before(workdir, part, damage):
    file = _parts(workdir / "checkpoints" / "50")[part]
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "bit":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    else:
        file.unlink()
        if file.name == "checksums.json":  # Nothing that is needed: it loads unchecked.
            assert load(workdir, 50).step == 50
            return
    with pytest.raises(InputError) as error:
        load(workdir, "latest")
    message = str(error.value)
    assert "checkpoints/50: found" in message and "\n" not in message
    assert "move that folder out of the workdir to go on from step 40" in message
    (workdir / "checkpoints" / "50").rename(workdir.parent / f"{workdir.name}-damaged")
    assert load(workdir, "latest").step == 40


def test_hosts_share_the_checking(workdir):
    folder = workdir / "checkpoints" / "50"
    for file in _parts(folder)[:4]:
        content = file.read_bytes()
        file.write_bytes(content[1:])
        found = [checksums.damaged(folder, share=share, shares=3) for share in range(3)]
        assert sorted(found, key=str) == [None, None, str(file.relative_to(folder))]
        file.write_bytes(content)
