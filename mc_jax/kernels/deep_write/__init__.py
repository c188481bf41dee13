"""Compressing the segments of a sequence into MLP memories, and reading the online memory."""
