"""Sequences that are split over devices."""

from tests.on_devices.run import passes


def test_split_sequences():
    passes("context.py", devices=4)
