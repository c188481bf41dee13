"""Sequences that are split over devices."""

import pytest

from tests.on_devices.run import passes


@pytest.mark.long
def test_split_sequences(request):
    passes("context.py", 4, request)
