from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distgnn.data import id_maps
from distgnn.data.id_maps import IdMapBuilder
from distgnn.types import UserError

keys_of_a_kind = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=60),
    st.lists(st.text(max_size=3), min_size=1, max_size=60),
)


def build(batches: list[list[object]]) -> tuple[list[object], list[int]]:
    builder = IdMapBuilder("user")
    for batch in batches:
        builder.append(pa.array(batch), "log.csv")
    keys, stable = builder.finish()
    return keys.to_pylist(), stable.tolist()


@given(keys=keys_of_a_kind, cuts=st.lists(st.integers(0, 60), max_size=4), compact_above=st.sampled_from([0, 3, 999]))
@settings(deadline=None)
def test_a_stable_id_is_the_rank_of_its_key(keys: list[object], cuts: list[int], compact_above: int) -> None:
    distinct = sorted(set(keys), key=lambda key: key.encode() if isinstance(key, str) else key)
    bounds = [0, *sorted(min(cut, len(keys)) for cut in cuts), len(keys)]
    batches = [keys[a:b] for a, b in zip(bounds, bounds[1:], strict=False) if a < b]
    before, id_maps._COMPACT_ABOVE = id_maps._COMPACT_ABOVE, compact_above
    try:
        assert build(batches) == (distinct, [distinct.index(key) for key in keys])
    finally:
        id_maps._COMPACT_ABOVE = before


def test_keys_that_count_from_zero_keep_their_numbers() -> None:
    assert build([[3, 1], [2, 0, 3]]) == ([0, 1, 2, 3], [3, 1, 2, 0, 3])


def test_text_keys_are_ordered_as_text() -> None:
    assert build([["10", "9", "é", "z"]])[0] == ["10", "9", "z", "é"]


def test_keys_of_two_kinds_are_refused() -> None:
    builder = IdMapBuilder("item")
    builder.append(pa.array([1]), "train.csv")
    with pytest.raises(UserError, match=r"test\.csv: item keys are text, but whole numbers in train\.csv"):
        builder.append(pa.array(["a"]), "test.csv")
