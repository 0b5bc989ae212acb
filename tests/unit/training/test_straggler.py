from __future__ import annotations

import pytest

from distgnn.report import straggler_sentence
from distgnn.training.straggler import find_straggler


def test_the_worker_with_most_work_and_the_stage_in_which_it_loses_most() -> None:
    own = {"blocked": [0.0, 1.0, 0.0], "fetch": [4.0, 4.0, 4.0], "forward": [1.0, 4.0, 1.0]}
    found = find_straggler(own)
    assert found == {"rank": 1, "stage": "forward", "seconds": 9.0, "of_mean": pytest.approx(9 / (19 / 3))}
    assert straggler_sentence({"straggler": found, "workers": 3}) == (
        "Worker 1 has most work of its own: 9.0 s, 1.42 times the mean of the 3 workers; "
        "it loses most in the forward pass."
    )


@pytest.mark.parametrize("own", [{"fetch": [3.0]}, {"fetch": [0.0, 0.0]}])
def test_nobody_is_named_where_nobody_can_be(own: dict[str, list[float]]) -> None:
    assert find_straggler(own) is None
    assert straggler_sentence({"straggler": None, "workers": 1}) == ""
