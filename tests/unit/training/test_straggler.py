from __future__ import annotations

import math

import pytest

from distgnn.training.straggler import find_straggler

OWN = {"blocked": [0.0, 1.0, 0.0], "fetch": [4.0, 4.0, 4.0], "forward": [1.0, 4.0, 2.0]}


def test_the_worker_with_most_work_and_the_stage_in_which_it_loses_most() -> None:
    assert find_straggler(OWN, [0.25, 0.5, 0.5]) == {
        "rank": 1,
        "seconds": 9.0,
        "others_seconds": 5.5,
        "stage": "forward",
        "stage_lost_seconds": 2.5,
    }


@pytest.mark.parametrize(
    ("variance", "named"),
    # The 3.5 s that it loses are three standard errors of 1.17 s: a variance of 1.36.
    [
        ([0.0, 1.3, 0.0], True),
        ([0.0, 1.4, 0.0], False),
        ([2.7, 0.0, 2.7], True),  # the others' mean has a quarter of their sum
        ([2.7, 0.0, 2.8], False),
        ([0.0, 0.0, math.inf], False),
    ],
)
def test_what_may_be_chance_is_not_named(variance: list[float], named: bool) -> None:
    assert (find_straggler(OWN, variance) is not None) == named


@pytest.mark.parametrize(
    "own",
    [
        {"fetch": [3.0]},
        {"fetch": [0.0, 0.0]},
        {"fetch": [10.0, 10.4]},  # less than 5% more
    ],
)
def test_nobody_is_named_where_nobody_stands_out(own: dict[str, list[float]]) -> None:
    assert find_straggler(own, [0.0] * len(own["fetch"])) is None
