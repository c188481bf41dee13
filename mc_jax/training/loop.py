"""The training loop.

The order of a start, which is also that of going on:

  1. every setting is checked before anything is computed or written;
  2. the newest complete checkpoint of the workdir is found, and its experiment compared;
  3. its state and its data iterator are loaded: the next batch is the one after that step;
  4. metrics.jsonl drops the lines of later steps, for these are done again.

And of a step: take the batch, dispatch the update, read the metrics of the update before it while
this one computes. Before a checkpoint the metrics of its own step are read and on disk, so that
none follows a number that is not finite, and none is ahead of the metrics.
"""

import fcntl
import json
import math
import time
from contextlib import ExitStack, closing
from pathlib import Path
from signal import Signals
from typing import IO, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mc_jax import data
from mc_jax.allocator import keep_freed_memory
from mc_jax.data.pipeline import TrainIterator
from mc_jax.errors import InputError
from mc_jax.files import replace
from mc_jax.model import param_count
from mc_jax.sharding import make_mesh
from mc_jax.training import curves, hosts, metrics
from mc_jax.training.checkpoint import Checkpoints
from mc_jax.training.experiment import Experiment, check, check_devices
from mc_jax.training.fine_tuning import other_params, start_from
from mc_jax.training.functions import Functions, functions_of
from mc_jax.training.hosts import HostLostError
from mc_jax.training.phases import USEFUL, Phases
from mc_jax.training.profile import Profile
from mc_jax.training.progress import Progress
from mc_jax.training.recorder import DivergedError, Recorder
from mc_jax.training.resume import check_same_run
from mc_jax.training.sharding import Rows, Shardings, to_devices
from mc_jax.training.state import TrainState
from mc_jax.training.step import Metrics
from mc_jax.training.stop import StopSignal


class Outcome(NamedTuple):
    """How `train` ended."""

    step: int  # the last one done
    signal: Signals | None = None  # what stopped it before config.train.steps


def train(config: ConfigDict, workdir: Path) -> Outcome:
    """Run an experiment, or go on with it where `workdir` holds a part of it.

    On a CPU this process keeps the memory it frees from then on (`mc_jax.allocator`).

    Args:
      config: the experiment: `seed`, `model`, `data` and `train`, as in configs/base.py.
      workdir: receives config.json, checkpoints/, metrics.jsonl, tensorboard/ and curves.png.

    Raises:
      InputError: a setting or the workdir cannot be used; nothing was computed or lost.
      DivergedError: the loss or the gradient is not finite; says which checkpoint is good.
      HostLostError: another host of the run has left.
    """
    hosts.check_joined()
    # First, for a setting that is refused on one host only would leave the others waiting.
    hosts.check_same(json.loads(config.to_json()))
    experiment = check(config)
    check_devices(experiment, jax.device_count())
    with ExitStack() as stack:
        phases = stack.enter_context(closing(Phases(60 * experiment.train.stuck_minutes)))
        if hosts.is_first():
            stack.enter_context(_claim(workdir))
        hosts.wait_for_all("workdir")
        checkpoints = Checkpoints(workdir / "checkpoints", experiment.train.keep_checkpoints)
        stack.callback(checkpoints.close)
        start = checkpoints.latest or 0
        hosts.check_shared(checkpoints.folder, start)
        changes = []
        if start:
            changes = check_same_run(checkpoints.config(start), experiment.to_json())
        if start >= experiment.train.steps:
            _say(f"{workdir} is finished, at step {start}; raise config.train.steps to go on")
            return Outcome(start)

        keep_freed_memory()
        shardings = Shardings(make_mesh(experiment.mesh))
        token_bytes = None
        if experiment.text:
            token_bytes = jnp.asarray(data.tokenizer(config.data).token_bytes)
        functions = functions_of(experiment, shardings, token_bytes)
        rows = shardings.rows_here(config.data.batch_size, config.data.length)
        batches = stack.enter_context(closing(_batches(config, rows)))
        data.eval_batches(config.data)  # bad held-out data shows now, not at the first measurement
        if start:
            state, position = checkpoints.restore(start, functions.state)
            batches.set_state(position)
            for change in changes:
                _say(f"changed since step {start}: {change}")
        elif experiment.train.init_from:
            others = other_params(experiment.model, experiment.train)
            state = functions.initialise()
            state = state._replace(params=start_from(state.params, others))
        else:
            state = functions.initialise()

        sinks = []
        if hosts.is_first():
            sinks = metrics.open_sinks(experiment.train, workdir, experiment.to_json(), start)
            replace(workdir / "config.json", json.dumps(experiment.to_json(), indent=2).encode())
        for sink in sinks:
            stack.enter_context(closing(sink))
        _say(
            f"{workdir}: {f'going on from step {start}' if start else 'a new run'}\n"
            f"{param_count(experiment.model):,} parameters, {experiment.tokens:,} tokens a step, "
            f"{jax.device_count()} x {jax.devices()[0].device_kind}{_shape(shardings)}"
        )
        progress = stack.enter_context(closing(Progress(experiment, start)))
        recorder = Recorder(sinks, progress, experiment)
        stop = stack.enter_context(StopSignal())
        run = _Run(
            *(experiment, workdir, checkpoints, batches, rows, shardings, functions, recorder),
            *(stop, phases),
        )
        profile = stack.enter_context(closing(Profile(experiment.train.profile, workdir)))
        try:
            return run.steps(start, state, profile)
        except jax.errors.JaxRuntimeError as error:
            if not hosts.several():
                raise
            reason = str(error).splitlines()[0]
            lost = (
                f"in phase {phases.current!r} another host was lost, or the way to it ({reason}); "
                "the same command on all hosts goes on from the last checkpoint"
            )
            hosts.end_soon(lost, hosts.HOST_LOST)
            raise HostLostError(lost) from None


class _Run(NamedTuple):
    """The parts that the loop works with."""

    experiment: Experiment
    workdir: Path
    checkpoints: Checkpoints
    batches: TrainIterator
    rows: Rows
    shardings: Shardings
    functions: Functions
    recorder: Recorder
    stop: StopSignal
    phases: Phases

    def steps(self, start: int, state: TrainState, profile: Profile) -> Outcome:
        """Do the steps after `start`, to the last one or until a signal comes."""
        settings = self.experiment.train
        train_step = self.shardings.on_mesh(self.functions.train_step)
        step, unread, stopped, saved = start, None, None, time.monotonic()
        try:
            while step < settings.steps and not stopped:
                with self.phases.phase("data"):
                    batch = to_devices(next(self.batches), self.shardings.batch, self.rows)
                profile.before(step + 1)
                # Only what `to_devices` has put there may reach the devices.
                with jax.transfer_guard_host_to_device("disallow"):
                    state, values = train_step(state, batch)
                if unread:
                    self.recorder.write(step, self.recorder.read(step, unread))
                step, unread, stopped = step + 1, values, self.stop.at(step + 1)
                profile.after(step, values)
                self.phases.enter(USEFUL)  # the first one was the start's: it compiled
                measure = step % settings.eval_every == 0 or step == settings.steps
                due = step % settings.checkpoint_every == 0 or self._late(step, saved)
                if measure or stopped or due:
                    self._checkpoint(step, state, values, measure)
                    unread, saved = None, time.monotonic()
        except DivergedError as error:
            raise DivergedError(f"{error}; {self._way_back()}") from None
        with self.phases.phase("checkpoint"):
            self.checkpoints.wait()
        if step < settings.steps:
            return Outcome(step, stopped)
        self.recorder.note(
            f"finished: step {step}; best held-out loss at step {self.checkpoints.best}; "
            f"curves in {self.workdir / 'curves.png'}"
        )
        return Outcome(step)

    def _late(self, step: int, saved: float) -> bool:
        """Whether a checkpoint is due by the clock; looked at every tenth step, for hosts have to
        agree."""
        minutes = self.experiment.train.checkpoint_minutes
        if not minutes or step % 10:
            return False
        return hosts.agree(time.monotonic() - saved > 60 * minutes)

    def _checkpoint(self, step: int, state: TrainState, values: Metrics, measure: bool) -> None:
        """Read and write the metrics of a step, measure the held-out loss, and save."""
        record, held_out_loss = self.recorder.read(step, values), math.inf
        if measure:
            with self.phases.phase("evaluation"):
                held_out = self.functions.held_out(
                    state.params, data.eval_batches(self.experiment.config.data)
                )
            record |= self.recorder.held_out(step, held_out)
            held_out_loss = held_out["loss"]
        record |= self.phases.numbers()
        with self.phases.phase("checkpoint"):
            self.recorder.write(step, record, always=measure)
            self.recorder.sync()
            config = self.experiment.to_json()
            self.checkpoints.save(step, state, self.batches.get_state(), config, held_out_loss)
            if measure and hosts.is_first():
                curves.draw(self.workdir)
        self.recorder.pause()

    def _way_back(self) -> str:
        self.checkpoints.wait()
        good = self.checkpoints.latest
        if good is None:
            return "there is no checkpoint yet: lower config.train.learning_rate and start again"
        return (
            f"the last good checkpoint is that of step {good}: the same command goes on from it; "
            "lower config.train.learning_rate, or it will end here again"
        )


def _say(text: str) -> None:
    """Print on the first host."""
    if hosts.is_first():
        print(text, flush=True)


def _shape(shardings: Shardings) -> str:
    """The mesh, where it is more than copies that share the batch."""
    sizes = {name: size for name, size in shardings.mesh.shape.items() if size > 1}
    if not sizes.keys() - {"data"}:
        return ""
    return " as " + " x ".join(f"{name}={size}" for name, size in sizes.items())


def _claim(workdir: Path) -> IO[str]:
    """Make the workdir, and keep other runs out of it until the file that is returned is closed.

    Raises:
      InputError: it cannot be written, or another run is at work in it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        allowed = f"a folder that can be written ({error.strerror})"
        raise InputError("workdir", str(workdir), allowed) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise InputError("workdir", str(workdir), "one that no other run is using") from None
    return lock


def _batches(config: ConfigDict, rows: Rows) -> TrainIterator:
    """This host's part of the training batches."""
    return data.train_iterator(
        config.data, seed=config.seed, process_index=rows.part, process_count=rows.parts
    )
