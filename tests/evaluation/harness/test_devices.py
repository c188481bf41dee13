"""The adapter on two devices, in a process that has them."""

from tests.on_devices.run import passes


def test_two_devices():
    passes("harness.py", 2)
