"""Tests that run with `--all` only, because others have their parts, too."""

import pytest


def param(*values, rare, id=None):
    """`pytest.param`, of which `rare` says whether it is such a test."""
    return pytest.param(*values, id=id, marks=pytest.mark.rare if rare else ())


def named(cases, rare=()):
    """Parameters of cases by their names, of which some are such tests."""
    return [param(case, rare=name in rare, id=name) for name, case in cases.items()]
