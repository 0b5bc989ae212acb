from __future__ import annotations

import threading

import numpy as np
import pytest

from distgnn.timeline import FETCH, FORWARD, NAMES, PHASES, ROWS, SAMPLING, Timeline
from distgnn.timing import Spread, StageClock, Watch


def test_events_keep_their_times_names_and_threads_in_order() -> None:
    timeline = Timeline(rank=0)
    timeline.phase, timeline.step = "fit", 7
    timeline.add(FETCH, 1.0, 2.0)
    thread = threading.Thread(name="distgnn-sampler_0", target=timeline.add, args=(SAMPLING, 0.5, 3.0, 9))
    thread.start()
    thread.join()
    timeline.add(FORWARD, 2.0, 2.5)
    assert timeline.threads == ["trainer", "sampler 0"]
    fit = PHASES.index("fit")
    expected = [
        [1.0, 2.0, NAMES.index(FETCH), 0, fit, 7],
        [0.5, 3.0, NAMES.index(SAMPLING), 1, fit, 9],
        [2.0, 2.5, NAMES.index(FORWARD), 0, fit, 7],
    ]
    np.testing.assert_array_equal(timeline.columns(), expected)
    np.testing.assert_array_equal(timeline.columns(1, 2), expected[1:2])


def test_a_thread_of_the_same_name_goes_on_in_the_same_row_and_a_nameless_one_works_for_the_trainer() -> None:
    timeline = Timeline(rank=0)
    for name in ("distgnn-sampler_0", "distgnn-sampler_0", "Dummy-1"):
        thread = threading.Thread(name=name, target=timeline.add, args=(SAMPLING, 0.0, 1.0, 0))
        thread.start()
        thread.join()
    assert timeline.columns()[:, 3].tolist() == [1, 1, 0]


def test_the_memory_is_bounded_and_the_end_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    timeline = Timeline(rank=3, most=2)
    for i in range(4):
        timeline.add(FETCH, float(i), i + 0.5)
    assert timeline.columns()[:, 0].tolist() == [0.0, 1.0]
    said = capsys.readouterr().err.splitlines()
    assert said == ["run.trace: worker 3 has recorded 2 events; the later ones are left out"]


def test_a_stage_counts_its_collectives_apart_and_events_meet_without_a_gap() -> None:
    watch = Watch()
    watch.timeline = Timeline(rank=0)
    seconds, collectives = {"fetch": 0.0, "forward": 0.0}, {"fetch": 0.0, "forward": 0.0}
    clock = StageClock(seconds, watch, collectives)
    began = clock.since
    watch.collected(ROWS, began)
    inside = watch.collective_seconds
    clock.lap("fetch")
    clock.lap("forward")
    assert 0 < inside == collectives["fetch"] <= seconds["fetch"]
    assert collectives["forward"] == 0
    rows, fetch, forward = watch.timeline.columns()
    assert (fetch[0], fetch[1]) == (began, forward[0])
    assert fetch[0] <= rows[0] <= rows[1] <= fetch[1]


def test_how_much_a_sum_varies() -> None:
    values = np.random.default_rng(2).normal(3.0, 0.5, 100)
    spread = Spread()
    assert spread.variance_of_sum == 0
    for n, value in enumerate(values, 1):
        spread.add(value)
        assert spread.variance_of_sum == (np.inf if n == 1 else pytest.approx(n * values[:n].var(ddof=1)))


def test_without_a_timeline_the_same_clocks_record_nothing() -> None:
    watch = Watch()
    seconds = {"fetch": 0.0}
    clock = StageClock(seconds, watch)
    watch.collected(ROWS, clock.since)
    clock.lap("fetch")
    assert seconds["fetch"] > 0
    assert watch.timeline is None
