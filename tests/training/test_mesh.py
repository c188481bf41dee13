"""Training over several devices."""

import pytest

from tests.on_devices.run import passes

# Of the axes that share more than gradients all together, and the longest runs of one;
# tests/on_devices/meshes.py has all.
MESHES = ("8x1x1x1", "1x1x8x1", "1x2x2x2")


@pytest.mark.long
def test_meshes():
    passes("meshes.py", 8, "-k", " or ".join((*MESHES, "not test_same_losses[")))
