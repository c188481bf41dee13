"""The version, importable without anything installed."""

__version__ = "0.1.0"
