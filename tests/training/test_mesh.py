"""Training over several devices."""

from tests.on_devices.run import passes

# One of each axis alone, and all together; tests/on_devices/meshes.py has all.
MESHES = ("8x1x1x1", "1x4x1x1", "1x1x8x1", "1x1x1x4", "1x2x2x2")


def test_meshes():
    passes("meshes.py", 8, "-k", " or ".join((*MESHES, "not test_same_losses[")))
