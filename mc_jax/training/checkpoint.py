"""Checkpoints: model, optimizer, data iterator and config, all of one step or none of it.

The only file that knows Orbax. A step is written to a temporary folder, in the background, and
renamed when it is complete: a process that is killed meanwhile leaves the earlier steps as they
were.
"""

import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from mc_jax.errors import InputError
from mc_jax.training import checksums
from mc_jax.training.state import TrainState
from mc_jax.typing import PyTree

_LOSS = "held_out_loss"


class Saved(NamedTuple):
    """What evaluation needs of a checkpoint."""

    step: int
    config: ConfigDict
    params: PyTree


def load(workdir: Path, which: str | int = "best", weights: bool = True) -> Saved:
    """Load the model of a run.

    Args:
      workdir: the run.
      which: "best" (lowest held-out loss), "latest", or a step that is kept.
      weights: whether to read the parameters, which are None otherwise.

    Raises:
      InputError: no run, no such checkpoint, or a damaged one.
    """
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise InputError("workdir", str(workdir), "the workdir of a run; it has no checkpoints/")
    with closing(Checkpoints(folder, reader=True)) as checkpoints:
        steps = checkpoints.steps
        named = {"best": checkpoints.best, "latest": checkpoints.latest}
        step = named.get(which, which) if isinstance(which, str) else which
        if step not in steps:
            allowed = f"best, latest, or one of the steps {steps}"
            raise InputError("checkpoint", which, allowed if steps else "a run with a checkpoint")
        params = checkpoints.params(step) if weights else None
        return Saved(step, ConfigDict(checkpoints.config(step)), params)


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int = 1, reader: bool = False):
        """Open them.

        Args:
          folder: where they lie, one folder a step; made if it is not there.
          keep: latest steps that are kept, besides the one with the lowest held-out loss.
          reader: whether another process may be writing there; a writer clears away what one
            that was killed has left.

        Raises:
          InputError: the held-out loss of a step is damaged.
        """
        self.folder = folder
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics[_LOSS], reverse=True, n=1
        )
        policy = checkpoint_managers.AnyPreservationPolicy(
            [checkpoint_managers.LatestN(keep), best]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=lambda metrics: metrics[_LOSS],
            best_mode="min",
            cleanup_tmp_directories=not reader,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        for step in self._folders():
            self._check(step, "metrics/")  # All that Orbax reads on opening.
        handlers = {"state": ocp.StandardCheckpointHandler()}
        handlers |= {name: ocp.JsonCheckpointHandler() for name in ("data", "config")}
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=options, item_handlers=handlers
        )

    @property
    def steps(self) -> list[int]:
        """The steps that are kept, in order."""
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step with the lowest held-out loss, the newest where none was measured, or None."""
        return self._manager.best_step()

    def save(
        self,
        step: int,
        state: TrainState,
        data: Mapping[str, Any],
        config: Mapping[str, Any],
        held_out_loss: float = math.inf,
    ) -> None:
        """Start to write a step; returns once `state` may be overwritten.

        Args:
          step: its number.
          state: the state after that step.
          data: the state of the data iterator after that step, of JSON's types: it has to be the
            same on every host.
          config: the experiment, of JSON's types.
          held_out_loss: of that step; infinity if it was not measured.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(data),
            config=ocp.args.JsonSave(config),
        )
        self._manager.wait_until_finished()
        self._saving = step
        self._manager.save(step, args=items, metrics={_LOSS: held_out_loss})

    def config(self, step: int) -> dict[str, Any]:
        """The experiment that a step belongs to.

        Raises:
          InputError: the step is damaged.
        """
        self._check(step, "config/")
        return self._read(step, config=ocp.args.JsonRestore())["config"]

    def restore(self, step: int, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Load a step; to be called on all hosts, each of which checks a share of the files.

        Args:
          step: its number.
          target: shapes and types of the state, and where its arrays go.

        Returns:
          The state, and that of the data iterator.

        Raises:
          InputError: the step is damaged.
        """
        self._check_together(step)
        items = self._read(
            step, state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
        )
        return items["state"], items["data"]

    def params(self, step: int) -> PyTree:
        """The model's parameters at a step, on one device of this process.

        Raises:
          InputError: the step is damaged.
        """
        self._check(step)
        # The devices that wrote it may not be here.
        here = SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
            dict(self._manager.item_metadata(step)["state"]),
        )
        return self._read(step, state=ocp.args.StandardRestore(target))["state"]["params"]

    def wait(self) -> None:
        """Return when every step is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and let go of the threads."""
        self._manager.close()

    def _seal(self) -> None:
        """Add the checksums; Orbax calls this when a step is written, and then renames it."""
        if jax.process_index() == 0:
            (folder,) = self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")
            checksums.write(folder)

    def _read(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax and its storage raise many types for a broken file.
            raise self._error(step, repr(error)[:200]) from error

    def _folders(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdecimal())

    def _check(self, step: int, part: str = "") -> None:
        damaged = checksums.damaged(self.folder / str(step), part)
        if damaged:
            raise self._error(step, f"{damaged} is missing or has changed")

    def _check_together(self, step: int) -> None:
        """`_check` of all files, by all hosts."""
        share, shares = jax.process_index(), jax.process_count()
        damaged = checksums.damaged(self.folder / str(step), share=share, shares=shares)
        everywhere = multihost_utils.process_allgather(np.array(damaged is not None))
        if np.any(everywhere):
            name = damaged or f"a file that host {np.argmax(everywhere)} names"
            raise self._error(step, f"{name} is missing or has changed")

    def _error(self, step: int, found: str) -> InputError:
        earlier = [other for other in self._folders() if other < step]
        if earlier:
            way_back = f"move that folder out of the workdir to go on from step {earlier[-1]}"
        else:
            way_back = "there is no earlier one, so begin again in another workdir"
        return InputError(
            str(self.folder / str(step)), found, f"the files that were saved; {way_back}"
        )
