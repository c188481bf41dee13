"""Training over several devices."""

import pytest

from tests.on_devices.run import passes

# The longest run of one axis, and of the axes that share more than gradients all together;
# tests/on_devices/meshes.py has all.
MESHES = ("1x1x8x1", "1x2x2x2")


@pytest.mark.long
def test_meshes():
    passes("meshes.py", 8, "-k", " or ".join((*MESHES, "not test_same_losses[")))
