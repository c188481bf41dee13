"""Compiles the training step of an experiment for devices that are not here, and measures it."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

from mc_jax.errors import InputError
from mc_jax.model import param_count
from mc_jax.planning.activations import activation_bytes
from mc_jax.planning.chips import Hardware, devices_of, hardware_of
from mc_jax.planning.program import Program, totals
from mc_jax.sharding import make_mesh
from mc_jax.training.experiment import Experiment, check_devices
from mc_jax.training.functions import Functions, functions_of
from mc_jax.training.sharding import BATCH_KEYS, Shardings
from mc_jax.training.state import TrainState
from mc_jax.typing import PyTree

# Forward passes that the backward pass does again, by `model.remat`: of "dots" all but the products
# with weights, counted as none.
_AGAIN = {"none": 0, "dots": 0, "full": 1}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one training step needs.

    Attributes:
      topology: the devices.
      chip: their kind.
      devices: how many.
      mesh: sizes of its axes.
      params: of the model, all together.
      tokens: of a step.
      steps: of the experiment.
      hbm: bytes of a device.
      memory: bytes of a device: `parameters`, `optimizer`, `batch`, `temporaries`, `program`, and
        `total`, the most at any time. Where the program does not fit, what the compiler said.
      activations: bytes of a device that the forward pass keeps for the backward pass, at the most
        (see `activation_bytes`); a part of the temporaries.
      collectives: by kind, number and bytes that a device sends, of a step.
      flops: of a step on all devices: `model` (its equations), `hardware` (with what is computed
        again to save memory).
      seconds: of a step, at the hardware's limits: `compute` (`hardware` FLOPs), `state` (HBM, for
        parameters and optimizer to be read and written once) and `network`; and `compiled`, the
        compiler's estimate for what it compiled itself. None where it is not known.
      seconds_to_compile: the compiler's own time.
    """

    topology: str
    chip: str
    devices: int
    mesh: dict[str, int]
    params: int
    tokens: int
    steps: int
    hbm: int
    memory: dict[str, int]
    activations: int
    collectives: dict[str, tuple[int, float]]
    flops: dict[str, float]
    seconds: dict[str, float | None]
    seconds_to_compile: float

    @property
    def fits(self) -> bool:
        """Whether the step fits into the devices' memory."""
        return self.memory["total"] <= self.hbm

    @property
    def free(self) -> float:
        """Share of HBM that is left."""
        return 1 - self.memory["total"] / self.hbm

    @property
    def least_seconds(self) -> float:
        """Of a step, by the roofline."""
        return max(self.seconds[name] or 0.0 for name in ("compute", "state", "network"))

    def to_json(self) -> dict[str, Any]:
        """All of it, of JSON's types."""
        derived = {"fits": self.fits, "free": self.free, "least_seconds": self.least_seconds}
        return dataclasses.asdict(self) | derived


def plan(experiment: Experiment, topology: str) -> Plan:
    """Compile an experiment's step for a topology; nothing is computed and no data is read.

    Args:
      experiment: what is to be trained.
      topology: such as "v5p:4x4x4".

    Raises:
      InputError: a setting that cannot be used there, or no such topology.
    """
    devices = devices_of(topology)
    check_devices(experiment, len(devices))
    hardware = hardware_of(devices)
    shardings = Shardings(make_mesh(experiment.mesh, devices))
    # What a token stands for does not matter here, only that it is counted.
    token_bytes = jnp.zeros(experiment.model.vocab_size, jnp.int32) if experiment.text else None
    functions = functions_of(experiment, shardings, token_bytes)
    started = time.perf_counter()
    collectives: dict[str, tuple[int, float]] = {}
    cycles = None
    try:
        compiled = _compile(experiment, shardings, functions)
    except jax.errors.JaxRuntimeError as error:
        memory = {"total": _used(experiment, error)}
    else:
        program = Program(compiled.as_text() or "")
        memory = _memory(functions.state, compiled)
        collectives, cycles = dict(totals(program.collectives())), program.cycles()
    elapsed = time.perf_counter() - started
    flops = {
        "model": experiment.flops,
        "hardware": experiment.flops * (3 + _AGAIN[experiment.model.remat]) / 3,
    }
    return Plan(
        topology=topology,
        chip=hardware.name,
        devices=len(devices),
        mesh=experiment.mesh.sizes(len(devices)),
        params=param_count(experiment.model),
        tokens=experiment.tokens,
        steps=experiment.train.steps,
        hbm=hardware.hbm,
        memory=memory,
        activations=activation_bytes(experiment, shardings, functions.state.params),
        collectives=collectives,
        flops=flops,
        seconds=_seconds(hardware, len(devices), flops["hardware"], memory, collectives, cycles),
        seconds_to_compile=elapsed,
    )


def _compile(
    experiment: Experiment, shardings: Shardings, functions: Functions
) -> jax.stages.Compiled:
    """The training step, compiled for the devices of the mesh."""
    shape = experiment.config.data.batch_size, experiment.config.data.length
    batch = {
        key: jax.ShapeDtypeStruct(
            shape, jnp.float32 if key == "weights" else jnp.int32, sharding=shardings.batch
        )
        for key in BATCH_KEYS
    }
    with jax.set_mesh(shardings.mesh):
        return functions.train_step.lower(functions.state, batch).compile()


def _memory(state: TrainState, compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of a device, by what they are for."""

    def size(tree: PyTree) -> int:
        return sum(
            x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
            for x in jax.tree.leaves(tree)
        )

    found = compiled.memory_analysis()
    assert found is not None
    params, moments = size(state.params), size(state.opt_state)
    program = found.generated_code_size_in_bytes
    # Inputs are donated: outputs lie where they did.
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    total = found.argument_size_in_bytes + new + found.temp_size_in_bytes + program
    return {
        "parameters": params,
        "optimizer": moments,
        "batch": found.argument_size_in_bytes - params - moments,
        "temporaries": found.temp_size_in_bytes + new,
        "program": program,
        "total": total,
    }


def _used(experiment: Experiment, error: Exception) -> int:
    """Bytes that a program would need, from the compiler's refusal; raises what is no such."""
    message = str(error)
    size = r"([\d.]+)([KMGT]?)"
    for pattern in (rf"Used {size} of [\d.]+[KMGT]? hbm", rf"\({size}\) exceeds available HBM"):
        found = re.search(pattern, message)
        if found:
            return round(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))
    if "memory space vmem" in message:
        allowed = "xla: a kernel of this model does not fit into the chip's vector memory"
        implementation = experiment.model.memory.implementation
        raise InputError("model.memory.implementation", implementation, allowed) from None
    raise error


def _seconds(
    hardware: Hardware,
    devices: int,
    flops: float,
    memory: dict[str, int],
    collectives: dict[str, tuple[int, float]],
    cycles: float | None,
) -> dict[str, float | None]:
    sent = sum(size for _, size in collectives.values())
    state = memory.get("parameters", 0) + memory.get("optimizer", 0)
    return {
        "compute": flops / devices / hardware.flops,
        "state": 2 * state / hardware.bandwidth if state else None,
        "network": None if hardware.links is None else sent / hardware.links,
        "compiled": cycles / hardware.clock if cycles and hardware.clock else None,
    }
