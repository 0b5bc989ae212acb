"""An export comes back as it was written, and damage to any file is refused by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn import resources, storage
from distgnn.export import writer
from distgnn.export.format import FILES, FOLD_IN, ITEMS, USERS, content_hash
from distgnn.export.reader import read_export
from distgnn.export.table import Table
from distgnn.export.writer import write_export
from distgnn.partition.dataset import PreparedDataset
from distgnn.types import UserError
from tests.moto_server import s3_bucket, s3_server
from tests.small_exports import random_tables, small_dataset, small_export

__all__ = ["s3_bucket", "s3_server"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return small_dataset(tmp_path_factory.mktemp("dataset"), text=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))


def seen_sets(dataset: PreparedDataset, phase: str) -> list[set[int]]:
    seen: list[set[int]] = [set() for _ in range(dataset.n_users)]
    for split in ("train", "valid") if phase == "full" else ("train",):
        for user, item in zip(*dataset.edges(split), strict=True):
            seen[user].add(int(item))
    return seen


def scattered(table: Table, seed: int) -> Iterator[tuple[np.ndarray, Table]]:
    """Chunks of uneven sizes, as workers give them, one of them empty."""
    order = np.random.default_rng(seed).permutation(len(table))
    for stable in np.split(order, [3, 3, len(order) // 2]):
        yield stable, table.take(stable)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
@pytest.mark.parametrize("phase", ["fit", "full"])
@pytest.mark.parametrize("chunked", [False, True])
def test_what_is_written_is_read(
    dataset: PreparedDataset, dtype: str, phase: str, chunked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users, items = random_tables(dataset, dtype)
    monkeypatch.setattr(writer, "CHUNK_ROWS", 7)
    given: list[Any] = [scattered(users, 0), scattered(items, 1)] if chunked else [users, items]
    out = str(tmp_path / "run" / "embeddings")
    write_export(out, model="m", dataset=dataset, phase=phase, users=given[0], items=given[1])
    export = read_export(str(tmp_path / "run"))
    for table, found in ((users, export.users), (items, export.items)):
        assert found.values.dtype == dtype
        assert (found.values == table.values).all()
        assert (table.scale is None and found.scale is None) or (found.scale == table.scale).all()
    assert export.user_keys == dataset.user_keys()
    assert export.item_keys == dataset.item_keys()
    assert (export.item_degree == dataset.item_degree(phase)).all()
    assert export.seen_items.dtype == np.int32
    for user, expected in enumerate(seen_sets(dataset, phase)):
        row = export.seen_items[export.seen_indptr[user] : export.seen_indptr[user + 1]]
        assert row.tolist() == sorted(expected)
    facts = {k: v for k, v in export.manifest.items() if k not in ("files", "content_hash")}
    assert facts == {
        "format": "distgnn-export",
        "format_version": 1,
        "model": "m",
        "phase": phase,
        "dataset": "small",
        "dataset_hash": dataset.data_hash,
        "dtype": dtype,
        "dim": 6,
        "n_users": dataset.n_users,
        "n_items": dataset.n_items,
    }
    assert sorted(p.name for p in Path(out).iterdir()) == sorted([*FILES, "manifest.json"])


def test_rows_of_bytes_take_bytes_in_the_file(tmp_path: Path) -> None:
    """Parquet has no 8-bit type: as plain values they would take four bytes each."""
    dataset = small_dataset(tmp_path, n_users=300, n_items=20)
    rng = np.random.default_rng(0)
    values = [rng.integers(-127, 128, (n, 64)).astype(np.int8) for n in (dataset.n_users, dataset.n_items)]
    users, items = (Table(v, np.ones(len(v), np.float16)) for v in values)
    write_export(str(tmp_path / "out"), model="m", dataset=dataset, phase="full", users=users, items=items)
    group = pq.ParquetFile(tmp_path / "out" / USERS).metadata.row_group(0)
    sizes = {group.column(i).path_in_schema: group.column(i).total_compressed_size for i in range(group.num_columns)}
    assert sizes["vector.list.element"] < 1.1 * values[0].size


def test_rows_are_ordered_within_chunks(dataset: PreparedDataset, tmp_path: Path) -> None:
    users, items = random_tables(dataset, "float32")
    write_export(
        str(tmp_path / "out"), model="m", dataset=dataset, phase="full", users=scattered(users, 0), items=items
    )
    file = pq.ParquetFile(tmp_path / "out" / USERS)
    assert file.num_row_groups == 3
    for group in range(3):
        stable = file.read_row_group(group, columns=["stable_id"])["stable_id"].to_numpy()
        assert (np.diff(stable) > 0).all()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_fold_in_map_is_the_least_squares_one(dataset: PreparedDataset, dtype: str, tmp_path: Path) -> None:
    users, items = random_tables(dataset, dtype)
    out = str(tmp_path / "out")
    write_export(out, model="m", dataset=dataset, phase="fit", users=scattered(users, 4), items=items)
    vectors, rows = items.dequantize().astype(float), users.dequantize().astype(float)
    pairs = [
        (np.mean([vectors[i] for i in seen], axis=0), rows[user])
        for user, seen in enumerate(seen_sets(dataset, "fit"))
        if seen
    ]
    expected = np.linalg.lstsq(*(np.array(side) for side in zip(*pairs, strict=True)), rcond=None)[0]
    np.testing.assert_allclose(read_export(out).fold_in, expected, rtol=2e-3, atol=2e-3)


def test_users_that_are_a_linear_map_of_their_histories_are_found_again(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    items, linear = rng.normal(size=(dataset.n_items, 4)), rng.normal(size=(4, 4))
    users = np.zeros((dataset.n_users, 4))
    for user, seen in enumerate(seen_sets(dataset, "full")):
        if seen:
            users[user] = linear.T @ items[sorted(seen)].mean(axis=0)
    out = str(tmp_path / "out")
    write_export(out, model="m", dataset=dataset, phase="full", users=Table(users), items=Table(items))
    np.testing.assert_allclose(read_export(out).fold_in, linear, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda u, i: (u.take(slice(1, None)), i), "1 of 40 rows are missing"),
        (lambda u, i: ([(np.zeros(2, int), u.take([0, 0]))], i), "given twice"),
        (lambda u, i: (Table(u.values.astype(np.float64)), i), "items of"),
        (lambda u, i: (u, Table(i.values.astype(np.int64))), "dtype int64 cannot be exported"),
    ],
)
def test_rows_that_do_not_fit_leave_nothing(
    dataset: PreparedDataset, change: Callable[..., Any], words: str, tmp_path: Path
) -> None:
    users, items = change(*random_tables(dataset, "float32"))
    with pytest.raises(ValueError, match=words):
        write_export(str(tmp_path / "out"), model="m", dataset=dataset, phase="full", users=users, items=items)
    assert [p for p in tmp_path.iterdir() if p.name != "cache"] == []


def test_vectors_that_are_not_finite_are_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    users, items = random_tables(dataset, "float32")
    users.values[3, 2] = np.nan
    with pytest.raises(UserError, match="training diverged"):
        write_export(str(tmp_path / "out"), model="m", dataset=dataset, phase="full", users=users, items=items)


def test_a_folder_in_use_is_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    users, items = random_tables(dataset, "float32")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UserError, match="out is in use"):
        write_export(str(tmp_path / "out"), model="m", dataset=dataset, phase="full", users=users, items=items)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("damage", "words"), [(Path.unlink, "missing"), (truncate, "truncated"), (alter, "altered")])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: Callable[[Path], None], words: str) -> None:
    small_export(tmp_path, "int8")
    damage(tmp_path / "run" / "embeddings" / name)
    with pytest.raises(UserError, match=f"embeddings/{name}: .*{words}"):
        read_export(str(tmp_path / "run"))


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    small_export(tmp_path)
    path = tmp_path / "run" / "embeddings" / "manifest.json"
    sound = path.read_text()
    content = json.loads(sound)
    for text, words in (
        (sound[:-9], "damaged"),
        (sound.replace('"random"', '"other"'), "altered"),
        (json.dumps({**content, "format_version": 2}), "format version 2"),
        ((tmp_path / "dataset" / "manifest.json").read_text(), "not the manifest of an export"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=rf"embeddings/manifest\.json: .*{words}"):
            read_export(str(tmp_path / "run"))
    path.unlink()
    with pytest.raises(UserError, match=r"run: no export there \(no manifest\.json"):
        read_export(str(tmp_path / "run"))


def forge(folder: Path, **facts: Any) -> None:
    """Make the manifest fit to the files as they are now."""
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **facts}
    for name in FILES:
        file = folder / name
        manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": storage.sha256_of(str(file))}
    path.write_text(json.dumps({**manifest, "content_hash": content_hash(manifest)}))


def test_files_of_something_else_are_named(tmp_path: Path) -> None:
    """Also where somebody has written a manifest that fits to them."""
    dim, n = 6, small_export(tmp_path).manifest["n_items"]
    folder = tmp_path / "run" / "embeddings"
    sound = tmp_path / "sound"
    shutil.copytree(folder, sound)

    def refused(name: str, words: str, **facts: Any) -> None:
        forge(folder, **facts)
        with pytest.raises(UserError, match=f"embeddings/{name}: not a file of an export.*{words}"):
            read_export(str(folder))
        shutil.rmtree(folder)
        shutil.copytree(sound, folder)

    (folder / USERS).write_bytes(b"no parquet at all")
    refused(USERS, "magic|footer|Parquet")
    shutil.copyfile(folder / ITEMS, folder / USERS)
    refused(USERS, "columns are stable_id, key, vector, degree")
    np.save(folder / FOLD_IN, np.zeros((dim, dim + 1), np.float32))
    refused(FOLD_IN, "instead of float32")
    (folder / FOLD_IN).write_bytes(b"x")
    refused(FOLD_IN, "")
    rows = pq.read_table(folder / ITEMS)
    pq.write_table(rows.slice(1), folder / ITEMS)
    refused(ITEMS, f"each of {n} stable ids once")
    pq.write_table(rows.set_column(0, "stable_id", pa.array(np.arange(n) + 1)), folder / ITEMS)
    refused(ITEMS, f"not below {n}")
    refused(USERS, "columns", dtype="int8")
    forge(folder, dim=7)
    with pytest.raises(UserError, match="not a file of an export"):
        read_export(str(folder))


def test_what_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = small_export(tmp_path, "float64", dim=16)
    vectors = export.users.nbytes + export.items.nbytes
    monkeypatch.setattr(resources, "available_memory", lambda: vectors + 4 * len(export.seen_items))
    with pytest.raises(UserError, match="embeddings: needs .* of memory, .* is free"):
        read_export(str(tmp_path / "run"))
    monkeypatch.setattr(resources, "available_memory", lambda: 2 * vectors + 16 * len(export.seen_items))
    read_export(str(tmp_path / "run"))


def test_an_export_in_object_storage(s3_bucket: str, dataset: PreparedDataset) -> None:
    users, items = random_tables(dataset, "int8")
    out = storage.join(s3_bucket, "run", "embeddings")
    write_export(out, model="m", dataset=dataset, phase="full", users=users, items=items)
    export = read_export(storage.join(s3_bucket, "run"))
    assert (export.users.values == users.values).all()
    storage.write_bytes(storage.join(out, FOLD_IN), b"short")
    with pytest.raises(UserError, match=r"fold_in\.npy: has 5 bytes"):
        read_export(out)
    size = export.manifest["files"][FOLD_IN]["bytes"]
    storage.write_bytes(storage.join(out, FOLD_IN), b"x" * size)
    shutil.rmtree(storage.cache_dir() / "objects")
    with pytest.raises(UserError, match=r"fold_in\.npy: altered or truncated"):
        read_export(out)
