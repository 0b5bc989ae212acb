"""Collects the rows of the table of faults, from whichever file's tests, and prints it at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

import pytest

from tests.faults.harness import Outcome, outcome_table

_PROPERTY = "outcome"


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[[Outcome], None]:
    """Puts a row into the table that the session prints."""
    return lambda outcome: record_property(_PROPERTY, astuple(outcome))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    reports = [r for name in ("passed", "failed") for r in terminalreporter.stats.get(name, []) if r.when == "call"]
    outcomes = [Outcome(*row) for report in reports for key, row in report.user_properties if key == _PROPERTY]
    if outcomes:
        terminalreporter.section("faults")
        terminalreporter.write_line(outcome_table(outcomes))
