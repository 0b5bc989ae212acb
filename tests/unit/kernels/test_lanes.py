"""Comparisons of sixteen numbers against one by one, jitted and as plain Python."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distgnn.kernels import lanes
from distgnn.kernels.lanes import LANES

VALUES = [-np.inf, -1.5, -0.0, 0.0, 1e-30, 2.0, np.inf, np.nan]


FORMS = ["_compiled", "_python"]


def form_of(form: str, name: str) -> Callable[..., int]:
    found: Callable[..., int] = getattr(lanes, f"{form}_{name}")
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", FORMS)
@given(st.lists(st.sampled_from(VALUES), min_size=LANES + 5, max_size=LANES + 5), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_every_lane_has_its_answer(form: str, dtype: type, values: list[float], start: int) -> None:
    row = np.array(values, dtype)
    numbers = row[start : start + LANES].tolist()
    for bound in row:
        at_least = sum(1 << j for j, x in enumerate(numbers) if x >= bound)
        above = sum(1 << j for j, x in enumerate(numbers) if x > bound)
        assert form_of(form, "lanes_at_least")(row, start, bound) == at_least
        assert form_of(form, "lanes_above")(row, start, bound) == above


@pytest.mark.parametrize("form", FORMS)
@given(st.integers(1, (1 << LANES) - 1))
def test_bits(form: str, bits: int) -> None:
    digits = f"{bits:b}"
    assert form_of(form, "count_bits")(bits) == digits.count("1")
    assert form_of(form, "lowest_bit")(bits) == len(digits) - 1 - digits.rindex("1")
