"""Calls `eval.py report`."""

import sys

import pytest

import eval as program
from tests.evaluation.report.made import Page


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Report on folders: the page, the Markdown, and the folder that they are in."""

    def report(*folders, more=()):
        to = tmp_path / "report"
        arguments = ["report", "--workdir", *map(str, folders), f"--to={to}", *more]
        monkeypatch.setattr(sys, "argv", ["eval.py", *arguments])
        assert program.main() == 0
        return Page((to / "report.html").read_text()), (to / "report.md").read_text(), to

    return report
