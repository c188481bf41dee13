"""The sizes of the mesh: keys of `config.mesh`."""

import dataclasses
import math

from ml_collections import ConfigDict

from mc_jax.errors import InputError
from mc_jax.settings import Settings

AXES = ("data", "fsdp", "context", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig(Settings):
    """How many devices each axis of the mesh has; one of them may be -1, for all that are left."""

    # Copies of the model, which share the batch.
    data: int = -1
    # Devices that share the batch as well as the parameters and the optimizer's state, and fetch
    # the weights of each layer when they need them.
    fsdp: int = 1
    # Devices that share each sequence: whole segments on each, memories exchanged.
    context: int = 1
    # Devices that share the heads and the feed-forward of each layer.
    tensor: int = 1

    GROUP = "mesh"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
          InputError: a value that is not allowed.
        """
        super().__post_init__()
        for name in AXES:
            size = getattr(self, name)
            if size < 1 and size != -1:
                allowed = "an integer >= 1, or -1 for all devices that are left"
                raise InputError(self._path(name), size, allowed)
        free = [name for name in AXES if getattr(self, name) == -1]
        if len(free) > 1:
            found = ", ".join(f"{name}=-1" for name in free)
            raise InputError("mesh", found, "-1 for one axis at most")

    def sizes(self, devices: int) -> dict[str, int]:
        """Size of every axis on so many devices.

        Raises:
          InputError: the axes do not make up the devices.
        """
        sizes = {name: getattr(self, name) for name in AXES}
        given = math.prod(size for size in sizes.values() if size > 0)
        shape = " x ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)
        if -1 not in sizes.values():
            if given != devices:
                allowed = f"a product of {devices}, the devices here; or -1 for one axis"
                raise InputError("mesh", f"{shape or 'data=1'} = {given} devices", allowed)
        elif devices % given:
            allowed = f"a product that divides the {devices} devices here"
            raise InputError("mesh", f"{shape} = {given} devices", allowed)
        return {name: devices // given if size == -1 else size for name, size in sizes.items()}


def default_config() -> ConfigDict:
    """Every key of `config.mesh` with its default; the comments stand beside the fields above."""
    return ConfigDict(dataclasses.asdict(MeshConfig()))
