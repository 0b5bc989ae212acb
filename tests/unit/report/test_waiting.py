from __future__ import annotations

from typing import Any

import pytest

from distgnn.report.waiting import blocked_sentence, straggler_sentence

FOUND = {"rank": 1, "seconds": 9.0, "others_seconds": 5.5, "stage": "forward", "stage_lost_seconds": 2.5}


def report(**changes: Any) -> dict[str, Any]:
    seconds = {"blocked": 0.25, "training": 12.5}
    return {"workers": 3, "seconds": seconds, "straggler": None, "blocked_share": 0.125} | changes


def test_the_straggler_is_named_with_what_it_loses() -> None:
    assert straggler_sentence(report(straggler=FOUND)) == (
        "Worker 1 is the straggler: 9.0 s of work of its own against 5.5 s, the mean of the others; "
        "it loses most in the forward pass, 2.5 s."
    )
    assert straggler_sentence(report()).startswith("No straggler: ")


@pytest.mark.parametrize(
    ("workers", "sentence"),
    [
        (1, "The trainer was blocked by its sampler for 0.2 s, 12% of its time."),
        (3, "The trainer of a worker was blocked by its sampler for at most 0.2 s, 12% of its time."),
    ],
)
def test_the_wait_for_the_sampler_is_told_with_its_share(workers: int, sentence: str) -> None:
    assert blocked_sentence(report(workers=workers)) == sentence


def test_one_worker_has_no_straggler_and_a_report_without_training_says_neither() -> None:
    assert straggler_sentence(report(workers=1)) == ""
    for seconds in ({}, {"blocked": 0.0, "training": 0.0}):
        assert straggler_sentence(report(seconds=seconds)) == blocked_sentence(report(seconds=seconds)) == ""
    older = {"workers": 2, "seconds": {"blocked": 1.0, "training": 2.0}}
    assert straggler_sentence(older) == blocked_sentence(older) == ""
