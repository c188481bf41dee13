"""The device that a program is made for."""

import contextlib

import jax
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, get_abstract_mesh, use_abstract_mesh

from mc_jax.errors import InputError

LEAST_VMEM = 32 * 2**20
# As JAX describes them; of a GPU no more is known than of the one that is here, if one is.
DESCRIBED = {
    "v4": AbstractDevice("TPU v4", num_cores=1, platform="tpu"),
    "v5e": AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu"),
    "v5p": AbstractDevice("TPU v5", num_cores=2, platform="tpu"),
    "v6e": AbstractDevice("TPU v6 lite", num_cores=1, platform="tpu"),
    "tpu7x": AbstractDevice("TPU7x", num_cores=1, platform="tpu"),
    "gpu": AbstractDevice("NVIDIA GPU", num_cores=None, platform="gpu"),
    "cpu": AbstractDevice("cpu", num_cores=None, platform="cpu"),
}


def on_gpu() -> bool:
    """Whether the current mesh's or the default device is a GPU."""
    return _platform() in ("gpu", "cuda", "rocm")


def on_tpu() -> bool:
    """Whether the current mesh's or the default device is a TPU."""
    return pltpu.is_tpu_device()


def on_cpu() -> bool:
    """Whether the current mesh's or the default device is a CPU."""
    return _platform() == "cpu"


def _platform() -> str:
    device = get_abstract_mesh().abstract_device or jax.config.jax_default_device  # type: ignore[attr-defined]
    return getattr(device, "platform", device) or jax.default_backend()


def described(name: str | None) -> contextlib.AbstractContextManager:
    """A context whose device is one that need not be here; None leaves it as it is.

    Raises:
      InputError: a device that is not described.
    """
    if name is None:
        return contextlib.nullcontext()
    if name not in DESCRIBED:
        raise InputError("device", name, " | ".join(DESCRIBED))
    return use_abstract_mesh(AbstractMesh((1,), ("one",), abstract_device=DESCRIBED[name]))


def this_chip() -> pltpu.TpuInfo:
    """The TPU of the current mesh or default device; elsewhere a v5e, whose steps are imitated."""
    if pltpu.is_tpu_device():
        return pltpu.get_tpu_info()
    return pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V5E, 1)


def too_little_vmem(chip: pltpu.TpuInfo) -> str | None:
    """Why a chip cannot run kernels with much between instructions, beside large memories.

    Those of MLP memories and of blocks of tokens hold hidden layers of 2 MiB and several of them;
    chips up to v4 have 16 MiB of VMEM, those after them 64 and more.
    """
    if chip.vmem_capacity_bytes >= LEAST_VMEM:
        return None
    least, found = (size // 2**20 for size in (LEAST_VMEM, chip.vmem_capacity_bytes))
    return f"the kernel needs a TPU with {least} MiB of VMEM, not {found}"


def vmem_room(chip: pltpu.TpuInfo) -> float:
    """Bytes of VMEM that blocks may fill; the rest is for values between instructions."""
    return 0.6 * chip.vmem_capacity_bytes


def vmem_limit(chip: pltpu.TpuInfo) -> int:
    """Bytes of VMEM that a kernel may take; a little is left to the compiler."""
    return chip.vmem_capacity_bytes * 7 // 8
