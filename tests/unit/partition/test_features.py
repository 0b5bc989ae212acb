"""Features in a dataset: by stable id, standardised, hashed, and nothing changed where there are none."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn import storage
from distgnn.partition import features as module
from distgnn.partition.dataset import PreparedDataset
from distgnn.partition.prepare import load_dataset, prepare
from distgnn.types import UserError
from tests.unit.partition.logs import config, random_log, write_log

RNG = np.random.default_rng(4)
ITEMS = [f"i{k}" for k in range(9)]
USERS = [f"u{k}" for k in range(14)]
VECTORS = {key: RNG.normal(3, 2, 4).astype(np.float32) for key in ITEMS}
PRICES = {key: float(RNG.integers(1, 100)) for key in ITEMS}


def item_table(keys: list[str]) -> pa.Table:
    return pa.table(
        {
            "item": keys,
            "price": [PRICES.get(key, 1e9) for key in keys],
            "same": [0.1] * len(keys),
            "vector": pa.array([VECTORS.get(key, np.full(4, 1e9)).tolist() for key in keys], pa.list_(pa.float32(), 4)),
        }
    )


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def run(tmp_path: Path, lines: list[str]) -> Callable[..., PreparedDataset]:
    """Prepare a log of text keys into `tmp_path/out` (or `out=`)."""
    log = write_log(tmp_path / "log.csv", random_log(0, text=True))

    def call(out: str = "out", **data: Any) -> PreparedDataset:
        source = {} if "path" in data or "name" in data else {"input": log}
        return prepare(config(data={**source, **data}, run={"out": str(tmp_path / out)}), lines.append)

    return call


def write(path: Path, table: pa.Table) -> str:
    pq.write_table(table, path)
    return str(path)


def raw(dataset: PreparedDataset) -> np.ndarray:
    """What the items' rows must hold before they are standardised; NaN without a row."""
    keys = dataset.item_keys().to_pylist()
    return np.array([[PRICES[k], 0.1, *VECTORS[k]] if k != "i4" else [np.nan] * 6 for k in keys])


def test_rows_stand_by_stable_id_and_are_standardised_over_those_that_have_one(
    tmp_path: Path, run: Any, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_VALUES", 12)  # two rows
    keys = [*[k for k in reversed(ITEMS) if k != "i4"], "other", "another"]
    dataset = run(item_features=write(tmp_path / "f.parquet", item_table(keys)))
    got, expected = dataset.features()["item"], raw(dataset)
    assert (got.dtype, got.shape) == (np.float32, (9, 6))
    assert not got.flags.owndata  # mapped
    there = ~np.isnan(expected[:, 0])
    mean, std = expected[there].mean(0), expected[there].std(0)
    std[1] = 1  # the constant column
    np.testing.assert_allclose(got[there], (expected[there] - mean) / std, rtol=1e-5, atol=1e-6)
    assert (got[there, 1] == 0).all()
    assert (got[~there] == 0).all()
    assert (~there).sum() == 1
    facts = dataset.manifest["features"]["item"]
    columns = [{"name": "price", "width": 1}, {"name": "same", "width": 1}, {"name": "vector", "width": 4}]
    assert (facts["columns"], facts["width"], facts["rows"]) == (columns, 6, 8)
    np.testing.assert_allclose(facts["mean"], mean, rtol=1e-6)
    assert facts["std"][1] == 0
    assert dataset.feature_widths() == {"item": 6}
    said = [line for line in lines if line.startswith("item features")]
    assert len(said) == 1
    assert "3 columns, 6 values a row" in said[0]
    assert "8 of 9 items have a row, 1 get zeros; 2 rows of unknown keys are left out" in said[0]


def test_raw_values_on_demand(tmp_path: Path, run: Any) -> None:
    dataset = run(item_features=write(tmp_path / "f.parquet", item_table(ITEMS)), standardize_features=False)
    keys = dataset.item_keys().to_pylist()
    np.testing.assert_array_equal(dataset.features()["item"][:, 2:], [VECTORS[k] for k in keys])
    facts = dataset.manifest["features"]["item"]
    assert facts["mean"] is facts["std"] is None


def test_the_order_of_the_table_changes_nothing(tmp_path: Path, run: Any) -> None:
    one = run("one", item_features=write(tmp_path / "f.parquet", item_table(ITEMS)))
    two = run("two", item_features=write(tmp_path / "g.parquet", item_table(ITEMS[::-1])))
    assert (one.content_hash, one.data_hash) == (two.content_hash, two.data_hash)
    other = run("other", item_features=write(tmp_path / "h.parquet", item_table(ITEMS[1:])))
    assert other.data_hash != one.data_hash
    assert other.content_hash != one.content_hash


def test_without_features_a_dataset_is_what_it_was(tmp_path: Path, run: Any) -> None:
    plain = run("plain")
    assert not {"features", "log_hash"} & plain.manifest.keys()
    assert not any("features" in name for name in plain.manifest["files"])
    assert plain.features() == plain.feature_widths() == {}
    rich = run("rich", item_features=write(tmp_path / "f.parquet", item_table(ITEMS)))
    assert rich.manifest["log_hash"] == plain.data_hash != rich.data_hash
    assert {k: v for k, v in rich.manifest["files"].items() if "features" not in k} == plain.manifest["files"]


def user_table() -> pa.Table:
    return pa.table({"user": USERS, "age": list(range(14))})


def test_a_prepared_dataset_gets_features_in_a_copy(tmp_path: Path, run: Any) -> None:
    items, users = write(tmp_path / "f.parquet", item_table(ITEMS)), write(tmp_path / "u.parquet", user_table())
    plain = run("plain")
    with_items = run("with-items", path=plain.path, item_features=items)
    both = run("both", path=with_items.path, user_features=users)
    at_once = run("at-once", item_features=items, user_features=users)
    assert both.data_hash == at_once.data_hash
    assert both.manifest["features"] == at_once.manifest["features"]
    np.testing.assert_array_equal(both.features()["item"], at_once.features()["item"])
    np.testing.assert_array_equal(both.features()["user"], at_once.features()["user"])
    copied = run("copied", path=both.path)
    assert (copied.data_hash, copied.content_hash) == (both.data_hash, both.content_hash)
    with pytest.raises(UserError, match="has item features already; leave data.item_features out"):
        run("again", path=both.path, item_features=items)
    with pytest.raises(
        UserError, match=r"has no item features; make a dataset with them by: distgnn prepare .*run.out"
    ):
        prepare(config(data={"path": plain.path, "item_features": items}))
    assert PreparedDataset.open(both.path).features().keys() == {"user", "item"}


def test_a_named_dataset_gets_features_beside_it(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))
    keys = load_dataset("debian-deps").item_keys()
    table = pa.table({"item": keys.slice(5), "x": np.arange(len(keys) - 5)})
    named = {"item_features": write(tmp_path / "f.parquet", table)}
    dataset = load_dataset("debian-deps", data=named)
    assert dataset.features()["item"].shape == (len(keys), 1)
    assert (dataset.features()["item"][:5] == 0).all()
    again = load_dataset("debian-deps", data=named)
    assert again.path == dataset.path
    unscaled = load_dataset("debian-deps", data={**named, "standardize_features": False})
    assert unscaled.path != dataset.path
    assert unscaled.features()["item"][5:, 0].tolist() == list(range(len(keys) - 5))
    write(tmp_path / "f.parquet", table.slice(1))
    assert load_dataset("debian-deps", data=named).path not in (dataset.path, unscaled.path)


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, run: Any, damage: str) -> None:
    dataset = run(item_features=write(tmp_path / "f.parquet", item_table(ITEMS)))
    file = tmp_path / "out" / "features" / "items.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content if damage == "altered" else content[:-4])
    with pytest.raises(UserError, match=rf"features/items\.npy: .*{damage}"):
        PreparedDataset.open(dataset.path)


def test_a_mistake_in_the_values_leaves_nothing(tmp_path: Path, run: Any) -> None:
    table = item_table(ITEMS).set_column(1, "price", pa.array([1.0] * 8 + [np.inf]))
    with pytest.raises(UserError, match="row 9, column 'price'"):
        run(item_features=write(tmp_path / "f.parquet", table))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.parquet", "log.csv"]


def test_a_mistake_in_the_columns_is_found_before_the_log_is_read(tmp_path: Path, run: Any, lines: list[str]) -> None:
    with pytest.raises(UserError, match="no column 'item'"):
        run(item_features=write(tmp_path / "f.parquet", user_table()))
    assert lines == []


def test_a_full_disk_is_said(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left"):
        run(item_features=write(tmp_path / "f.parquet", item_table(ITEMS)))
    assert not storage.exists(str(tmp_path / "out"))


def test_features_of_a_remote_dataset_come_to_the_cache(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))
    local = run(item_features=write(tmp_path / "f.parquet", item_table(ITEMS)))
    remote = prepare(config(data={"path": local.path}, run={"out": f"memory://features-{tmp_path.name}/data"}))
    np.testing.assert_array_equal(remote.features()["item"], local.features()["item"])
    assert str(remote.local_file("features/items.npy")).startswith(str(tmp_path / "cache"))
