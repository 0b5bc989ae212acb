"""Keys to stable ids, whatever kind they are given in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distgnn.recommender import keys as module
from distgnn.recommender.keys import KeyIndex
from distgnn.types import UserError

NUMBERS = pa.array([-5, 0, 7, 12, 900])
TEXT = pa.array(["007", "12", "a,b", "z", "é"], pa.large_string())


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (-5, 0),
        (np.int32(7), 2),
        ("12", 3),
        ("-5", 0),
        ("0", 1),
        ("-0", -1),
        ("012", -1),
        ("+7", -1),
        ("7.0", -1),
        ("abc", -1),
        ("", -1),
        (13, -1),
        (2**63, -1),
        (str(2**63), -1),
    ],
)
def test_numbers(key: Any, expected: int) -> None:
    assert KeyIndex(NUMBERS, "user").find(key) == expected


@pytest.mark.parametrize(("key", "expected"), [("007", 0), ("12", 1), (12, 1), (7, -1), ("a,b", 2), ("é", 4), ("", -1)])
def test_text(key: Any, expected: int) -> None:
    assert KeyIndex(TEXT, "user").find(key) == expected


@pytest.mark.parametrize("key", [1.0, None, True, b"12", [1]])
@pytest.mark.parametrize("keys", [NUMBERS, TEXT])
def test_what_is_no_key(keys: pa.Array, key: Any) -> None:
    with pytest.raises(UserError, match="item key .* is a .*; give a whole number or text"):
        KeyIndex(keys, "item").find(key)


@given(st.sets(st.text(max_size=4), min_size=1), st.randoms(use_true_random=False), st.sampled_from([1, 10**9]))
def test_many_at_once_in_any_order(names: set[str], random: Any, share: int) -> None:
    """Both ways to search: each key, and all by hashing."""
    ordered = list(names)
    random.shuffle(ordered)
    index = KeyIndex(pa.array(ordered, pa.large_string()), "user")
    wanted = [*ordered, "nobody", *ordered[:2]]
    before = module._BISECT_SHARE
    module._BISECT_SHARE = share
    try:
        found = index.find_all(pa.array([*wanted, None], pa.large_string()))
    finally:
        module._BISECT_SHARE = before
    expected = [ordered.index(key) if key in names else -1 for key in wanted]
    assert found.tolist() == [*expected, -1]
    assert [index.find(key) for key in wanted] == expected


def test_lists_of_another_kind() -> None:
    numbers, text = KeyIndex(NUMBERS, "user"), KeyIndex(TEXT, "user")
    assert numbers.parse_all(pa.array(["7", "x", "900"])).to_pylist() == [7, None, 900]
    assert text.parse_all(pa.array([12, 7])).to_pylist() == ["12", "7"]
    assert numbers.parse_all(pa.array([7, 8])).to_pylist() == [7, 8]
