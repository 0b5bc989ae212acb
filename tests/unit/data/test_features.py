"""Tables of features: every kind of column, and every mistake with file, row and column."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn.data import features
from distgnn.data.features import FeatureTable
from distgnn.types import UserError

KNOWN = {"text": pa.array(["a", "b", "c", "d"], pa.large_string()), "integer": pa.array([3, 5, 8, 13])}


def written(path: Path, table: pa.Table, **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return str(path)


def values_of(table: FeatureTable) -> np.ndarray:
    return np.concatenate(list(table.batches()))


def read(uri: str) -> None:
    opened = FeatureTable(uri, "item", "item")
    opened.locate(KNOWN["text"])
    values_of(opened)


def test_numbers_and_lists_in_the_order_of_the_file(tmp_path: Path) -> None:
    table = pa.table(
        {
            "price": pa.array([1, 2, 3], pa.int16()),
            "item": ["c", "x", "a"],
            "fixed": pa.array([[0.5, 1.5], [2.5, 3.5], [4.5, 5.5]], pa.list_(pa.float64(), 2)),
            "free": pa.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], pa.large_list(pa.int64())),
            "half": pa.array(np.array([0.25, -4, 8], np.float16)),
            "sum": pa.array([Decimal("1.00"), Decimal("2.00"), Decimal("3.00")], pa.decimal128(5, 2)),
            "big": pa.array([2**63, 2**53 + 1, 1], pa.uint64()),
        }
    )
    opened = FeatureTable(written(tmp_path / "f.parquet", table), "item", "item")
    assert [(c.name, c.width) for c in opened.columns] == [
        ("price", 1),
        ("fixed", 2),
        ("free", 3),
        ("half", 1),
        ("sum", 1),
        ("big", 1),
    ]
    assert (opened.width, opened.rows) == (9, 3)
    found = opened.locate(KNOWN["text"])
    assert (found.stable.tolist(), found.n_unknown) == ([2, -1, 0], 1)
    got = values_of(opened)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(
        got,
        np.array(
            [
                [1, 0.5, 1.5, 1, 2, 3, 0.25, 1, 2**63],
                [2, 2.5, 3.5, 4, 5, 6, -4, 2, 2**53 + 1],
                [3, 4.5, 5.5, 7, 8, 9, 8, 3, 1],
            ]
        ).astype(np.float32),
    )


@pytest.mark.parametrize("kind", KNOWN)
def test_batches_and_files_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    rng = np.random.default_rng(0)
    keys = [f"k{i:03}" for i in range(300)] if kind == "text" else list(range(0, 600, 2))
    known = pa.array(keys[::2], pa.large_string() if kind == "text" else pa.int64())
    order = rng.permutation(300)
    vectors = rng.normal(size=(300, 4)).astype(np.float32)
    table = pa.table({"user": pa.array(keys).take(order), "v": pa.array(list(vectors[order]), pa.list_(pa.float32()))})
    parts = [written(tmp_path / "many" / f"{i}.parquet", table.slice(i * 100, 100)) for i in range(3)]
    whole = written(tmp_path / "whole.parquet", table, row_group_size=70)
    assert len(parts) == 3
    for batch in (4, 52, 1 << 20):  # values: a row, 13 rows, all
        monkeypatch.setattr(features, "_BATCH_VALUES", batch)
        monkeypatch.setattr(features, "_KEYS_AT_ONCE", batch)
        for uri in (whole, str(tmp_path / "many")):
            opened = FeatureTable(uri, "user", "user")
            found = opened.locate(known)
            assert found.n_unknown == 150
            placed = np.full((150, 4), np.nan, np.float32)
            placed[found.stable[found.stable >= 0]] = values_of(opened)[found.stable >= 0]
            np.testing.assert_array_equal(placed, vectors[::2])


NAN, INF = float("nan"), float("inf")
TEXT = ["a", "b", "c"]
MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no key column": ({"id": TEXT, "x": [1, 2, 3]}, ["no column 'item'", "'id', 'x'"]),
    "no other column": ({"item": TEXT}, ["no column but 'item'"]),
    "text": ({"item": TEXT, "title": TEXT}, ["column 'title'", "string", "numbers"]),
    "truth values": ({"item": TEXT, "new": [True, False, True]}, ["column 'new'", "bool", "numbers"]),
    "lists of text": ({"item": TEXT, "tags": [["x"], ["y"], ["z"]]}, ["column 'tags'", "numbers"]),
    "keys that are no keys": ({"item": [0.5, 1.5, 2.5], "x": [1, 2, 3]}, ["column 'item'", "double"]),
    "keys of another kind": (
        {"item": [1, 2, 3], "x": [1, 2, 3]},
        ["'item'", "whole numbers", "text", "write them alike"],
    ),
    "no key known": ({"item": ["x", "y", "z"], "x": [1, 2, 3]}, ["none of the keys in column 'item'"]),
    "null key": ({"item": ["a", None, "c"], "x": [1, 2, 3]}, ["row 2", "column 'item'", "null"]),
    "a key twice": ({"item": ["a", "b", "a"], "x": [1, 2, 3]}, ["row 3", "column 'item'", "'a'", "already"]),
    "null": ({"item": TEXT, "x": [1, 2, None]}, ["row 3", "column 'x'", "null"]),
    "NaN": ({"item": TEXT, "y": [1, 2, 3], "x": [1.0, NAN, 2.0]}, ["row 2", "column 'x'", "nan", "not finite"]),
    "infinite": ({"item": TEXT, "x": [1.0, 2.0, -INF]}, ["row 3", "column 'x'", "-inf", "not finite"]),
    "too large": ({"item": TEXT, "x": [1e39, 2.0, 3.0]}, ["row 1", "column 'x'", "1e+39", "not finite as float32"]),
    "null list": ({"item": TEXT, "v": [[1.0], None, [2.0]]}, ["row 2", "column 'v'", "null"]),
    "null first list": ({"item": TEXT, "v": [None, [1.0], [2.0]]}, ["row 1", "column 'v'", "null"]),
    "null in a list": ({"item": TEXT, "v": [[1.0, 2.0], [3.0, None], [5.0, 6.0]]}, ["row 2", "column 'v'", "null"]),
    "NaN in a list": ({"item": TEXT, "v": [[1.0, 2.0], [3.0, 4.0], [5.0, NAN]]}, ["row 3", "column 'v'", "nan"]),
    "list of another length": ({"item": TEXT, "v": [[1.0, 2.0], [3.0], [4.0, 5.0]]}, ["row 2", "column 'v'", "1", "2"]),
    "empty list": (
        {"item": TEXT, "v": pa.array([[], [], []], pa.list_(pa.float32()))},
        ["row 1", "column 'v'", "empty"],
    ),
    "no row": ({"item": pa.array([], pa.string()), "x": pa.array([], pa.int64())}, ["no row", "data.item_features"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    columns, words = MISTAKES[case]
    for number, at_once in enumerate((1, 1 << 20)):  # rows are counted over batches
        monkeypatch.setattr(features, "_BATCH_VALUES", at_once)
        monkeypatch.setattr(features, "_KEYS_AT_ONCE", at_once)
        uri = written(tmp_path / f"f{number}.parquet", pa.table(columns))
        with pytest.raises(UserError) as error:
            read(uri)
        message = str(error.value)
        assert "\n" not in message
        for word in [uri, *words]:
            assert word in message


def test_a_key_twice_is_found_in_another_batch_and_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_KEYS_AT_ONCE", 1)
    written(tmp_path / "many" / "1.parquet", pa.table({"item": ["a", "x", "b", "x", "c"], "x": [1, 2, 3, 4, 5]}))
    FeatureTable(str(tmp_path / "many"), "item", "item").locate(KNOWN["text"][:3])  # unknown keys may repeat
    written(tmp_path / "many" / "2.parquet", pa.table({"item": ["d", "c"], "x": [6, 7]}))
    with pytest.raises(UserError, match=r"2\.parquet, row 2, column 'item': the key 'c' has a row already"):
        FeatureTable(str(tmp_path / "many"), "item", "item").locate(KNOWN["text"])


def test_files_that_do_not_fit_together_or_are_no_parquet(tmp_path: Path) -> None:
    written(tmp_path / "many" / "1.parquet", pa.table({"item": ["a"], "x": [1]}))
    written(tmp_path / "many" / "2.parquet", pa.table({"item": ["b"], "y": [1]}))
    with pytest.raises(UserError, match=r"2\.parquet: has other columns than .*1\.parquet"):
        FeatureTable(str(tmp_path / "many"), "item", "item")
    (tmp_path / "f.csv").write_text("item,x\na,1\n")
    with pytest.raises(UserError, match=r"f\.csv: cannot be read"):
        FeatureTable(str(tmp_path / "f.csv"), "item", "item")
    with pytest.raises(UserError, match="nowhere.parquet: there is no such file"):
        FeatureTable(str(tmp_path / "nowhere.parquet"), "item", "item")
    with pytest.raises(UserError, match="column 'x' is there 2 times"):
        FeatureTable(
            written(
                tmp_path / "f.parquet",
                pa.Table.from_arrays([pa.array(["a"]), *2 * [pa.array([1])]], ["item", "x", "x"]),
            ),
            "item",
            "item",
        )
