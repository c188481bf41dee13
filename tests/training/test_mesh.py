"""Training over several devices."""

import pytest

from tests.on_devices.run import passes


@pytest.mark.long
def test_meshes(request):
    passes("meshes.py", 8, request)
