"""A wall clock that jumps by a day, ahead and back, during a run: nothing waits by it, nothing is told by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import Outcome, curve_difference
from tests.faults.small_runs import (
    LIMIT_SECONDS,
    SmallRuns,
    end_well,
    library,
    preloaded,
    runs,
    small_data,
    undisturbed,
)

__all__ = ["library", "runs", "small_data", "undisturbed"]
DAY = 86_400


def seconds_in(report: Any, name: str = "") -> Iterator[float]:
    """All figures of a report below keys that speak of seconds."""
    if isinstance(report, dict):
        for key, value in report.items():
            yield from seconds_in(value, key if "seconds" in key else name)
    elif isinstance(report, list):
        for value in report:
            yield from seconds_in(value, name)
    elif isinstance(report, (int, float)) and name:
        yield report


@pytest.mark.slow
def test_a_run_does_not_see_the_wall_clock_jump(
    runs: SmallRuns, undisturbed: Path, library: Path, note: Callable[[Outcome], None]
) -> None:
    run = runs.train(
        environment=preloaded(library, clock=str(DAY), period="1"),
        cluster__timeout_seconds="30",
        run__tensorboard="true",
    )
    end_well(run)
    assert curve_difference(runs.run, undisturbed) == ""
    report = json.loads((runs.run / "report.json").read_text())
    records = [json.loads(line) for line in (runs.run / "metrics.jsonl").read_text().splitlines()]
    measured = {key: value for key, value in report.items() if key != "config"}
    figures = [*seconds_in(measured), *seconds_in(records)]
    assert len(figures) > 20
    assert all(0 <= figure < LIMIT_SECONDS for figure in figures)
    expected = json.loads((undisturbed / "report.json").read_text())
    assert report["metrics"] == expected["metrics"]
    note(Outcome("wall clock: a day ahead and back", "all", None, "same curve and report", run.seconds))
