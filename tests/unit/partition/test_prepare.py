"""From all kinds of input to a dataset, and every mistake in words with nothing left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn import resources, storage
from distgnn.data.dataset_folder import write_dataset_folder
from distgnn.partition import dataset_files
from distgnn.partition.dataset import PreparedDataset
from distgnn.partition.prepare import estimate_bytes, load_dataset, open_or_prepare, prepare
from distgnn.types import UserError
from tests.unit.partition.logs import config, random_log, write_log


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def run(tmp_path: Path, lines: list[str]) -> Callable[..., PreparedDataset]:
    """Prepare into `tmp_path/out` (or `out=`)."""

    def prepare_with(data: dict[str, Any], out: str = "out", **sections: dict[str, Any]) -> PreparedDataset:
        place = {"out": str(tmp_path / out)} if out else {}
        sections["run"] = {**place, **sections.get("run", {})}
        return prepare(config(data=data, **sections), lines.append)

    return prepare_with


def write_edges(path: Path, edges: list[tuple[Any, Any]], **columns: list[Any]) -> str:
    user, item = ([edge[k] for edge in edges] for k in (0, 1))
    pq.write_table(pa.table({"user": user, "item": item, **columns}), path)
    return str(path)


def pairs(dataset: PreparedDataset, split: str) -> set[tuple[Any, Any]]:
    """Edges of a split by key."""
    users, items = dataset.user_keys().to_pylist(), dataset.item_keys().to_pylist()
    user, item = dataset.edges(split)
    return {(users[u], items[i]) for u, i in zip(user, item, strict=True)}


BLOCK = [(u, i) for u in range(4) for i in range(20)]


def test_given_logs_keep_their_split_and_the_test_is_cleared_of_train(tmp_path: Path, run: Any, lines: Any) -> None:
    dataset = run(
        {
            "input": write_edges(tmp_path / "train.parquet", [(0, 0), (0, 1), (1, 0), (1, 0), (2, 2)]),
            "valid_input": write_edges(tmp_path / "valid.parquet", [(0, 2), (1, 0)]),
            "test_input": write_edges(tmp_path / "test.parquet", [(0, 2), (0, 1), (1, 1), (9, 0), (2, 7)]),
        }
    )
    assert pairs(dataset, "train") == {(0, 0), (0, 1), (1, 0), (2, 2)}
    assert pairs(dataset, "valid") == {(0, 2)}
    assert pairs(dataset, "test") == {(1, 1), (9, 0), (2, 7)}
    assert dataset.user_keys().to_pylist() == [0, 1, 2, 9]  # never seen in train, still in the catalogue
    assert dataset.item_keys().to_pylist() == [0, 1, 2, 7]
    health = dataset.manifest["health"]
    assert health["duplicates"] == 1
    assert health["dropped"] == {"train": 0, "valid": 1, "test": 2}
    assert (health["test_users_unseen"], health["test_items_unseen"], health["test_edges_unseen"]) == (1, 1, 2)
    text = "\n".join(lines)
    assert "1 valid edges also stand in train: kept there alone" in text
    assert "2 test edges also stand in train or valid" in text
    assert "1 users and 1 items of the test were never seen in train: 2 test edges" in text
    for stage in ("estimated peak memory", "read ", "split ", "partition ", "; peak memory "):
        assert stage in text


def test_without_validation_a_tenth_of_each_users_train_is_held_out(tmp_path: Path, run: Any) -> None:
    data = {
        "input": write_edges(tmp_path / "train.parquet", BLOCK),
        "test_input": write_edges(tmp_path / "test.parquet", [(0, 99)]),
    }
    dataset = run(data)
    assert np.bincount(dataset.edges("valid")[0]).tolist() == [2, 2, 2, 2]
    assert pairs(dataset, "train") | pairs(dataset, "valid") == set(BLOCK)
    other = run(data, out="other", run={"seed": 5})
    assert pairs(other, "valid") != pairs(dataset, "valid")
    assert other.content_hash != dataset.content_hash


def registered(root: Path, monkeypatch: pytest.MonkeyPatch, **tables: pa.Table) -> None:
    """A dataset `own` under DISTGNN_DATA; card values go in `card`."""
    card = tables.pop("card", {})
    (root / "own").mkdir(parents=True)
    write_dataset_folder(root / "own", tables, {"name": "own", **card})
    monkeypatch.setenv("DISTGNN_DATA", str(root))


def edge_table(edges: list[tuple[int, int]], **columns: list[Any]) -> pa.Table:
    return pa.table(
        {
            "user": pa.array([u for u, _ in edges], pa.int32()),
            "item": pa.array([i for _, i in edges], pa.int32()),
            **columns,
        }
    )


def test_a_registered_dataset(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2)]
    registered(
        tmp_path / "data",
        monkeypatch,
        train=edge_table(train),
        valid=edge_table([(0, 1), (1, 1)]),
        test=edge_table([(0, 2), (2, 0)]),
        items=pa.table({"item": [5, 0, 2], "name": ["five", "zero", "two"], "degree": [7, 8, 9]}),
        card={"valid_is_subset_of_train": True},
    )
    dataset = run({"name": "own"})
    assert dataset.name == "own"
    assert pairs(dataset, "train") == {(0, 0), (1, 0), (2, 2)}
    assert pairs(dataset, "valid") == {(0, 1), (1, 1)}
    assert dataset.topology("full", "metis", 1).n_edges == len(train)
    table = dataset.item_table()
    assert table.column_names == ["stable_id", "key", "degree", "degree_fit", "name", "table_degree"]
    assert table.to_pydict() == {
        "stable_id": [0, 1, 2, 3],
        "key": [0, 1, 2, 5],  # the catalogue is every item known, also without an edge
        "degree": [2, 2, 1, 0],
        "degree_fit": [2, 0, 1, 0],
        "name": ["zero", None, "two", "five"],
        "table_degree": [8, None, 9, 7],
    }
    assert dataset.user_table().column_names == ["stable_id", "key", "degree", "degree_fit"]


def test_a_registered_dataset_split_anew(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    valid = [edge for edge in BLOCK if edge[1] % 5 == 0]
    registered(
        tmp_path / "data",
        monkeypatch,
        train=edge_table(BLOCK),
        valid=edge_table(valid),
        test=edge_table([(u, 20 + i) for u in range(4) for i in range(10)]),
        card={"valid_is_subset_of_train": True},
    )
    dataset = run({"name": "own", "split": "per_user_ratio", "valid_ratio": 0.2, "test_ratio": 0.1})
    assert [dataset.n_fit, dataset.n_valid, dataset.n_test] == [84, 24, 12]
    assert dataset.manifest["health"]["duplicates"] == 0
    with pytest.raises(UserError, match="global_time' needs timestamps, and own has none: choose per_user_ratio"):
        run({"name": "own", "split": "global_time"}, out="b")
    with pytest.raises(
        UserError, match="leave_last_k' needs timestamps where several logs are joined, and own has none"
    ):
        run({"name": "own", "split": "leave_last_k"}, out="b")


def test_a_table_must_name_every_key_once(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train = edge_table([(0, 0), (1, 1)])
    for number, (items, words) in enumerate(
        [
            (pa.table({"item": [0, 0], "name": ["a", "b"]}), "null or a key twice"),
            (pa.table({"item": [0, None], "name": ["a", "b"]}), "null or a key twice"),
            (pa.table({"name": ["a", "b"]}), "no column 'item'; columns there: name"),
            (pa.table({"item": ["0", "x"]}), "item keys are text, but whole numbers in"),
        ]
    ):
        registered(tmp_path / str(number), monkeypatch, train=train, test=edge_table([(0, 1)]), items=items)
        with pytest.raises(UserError, match=rf"items\.parquet: .*{words}"):
            run({"name": "own"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["global_time", "leave_last_k"])
def test_splits_by_time(tmp_path: Path, run: Any, split: str) -> None:
    log = write_log(tmp_path / "log.csv", random_log(3, n_rows=120))
    dataset = run({"input": log, "timestamp_column": "timestamp", "split": split})
    time = {name: dataset.edge_table(name)["timestamp"].to_numpy() for name in ("train", "valid", "test")}
    if split == "global_time":
        assert time["train"].max() < time["valid"].min() <= time["valid"].max() < time["test"].min()
    else:
        for user in range(dataset.n_users):
            own = {name: time[name][dataset.edges(name)[0] == user] for name in time}
            assert own["train"].max() <= own["valid"][0] <= own["test"][0]


def test_leave_last_k_goes_by_the_log_where_it_has_no_time(tmp_path: Path, run: Any) -> None:
    log = write_edges(tmp_path / "log.parquet", [(0, 3), (1, 9), (0, 1), (0, 2), (0, 3), (1, 8), (1, 7)])
    dataset = run({"input": log, "split": "leave_last_k"})
    assert pairs(dataset, "test") == {(0, 2), (1, 7)}
    assert pairs(dataset, "valid") == {(0, 1), (1, 8)}


def test_suspicious_users_and_empty_splits_are_told(tmp_path: Path, run: Any, lines: list[str]) -> None:
    edges = [("bot", f"i{k}") for k in range(300)] + [(f"u{k}", f"i{k}") for k in range(50)]
    dataset = run({"input": write_edges(tmp_path / "log.parquet", edges), "test_ratio": 0.0, "valid_ratio": 0.0})
    health = dataset.manifest["health"]
    assert health["suspicious_users"] == 1
    assert health["most_active"] == [["bot", 300]]
    text = "\n".join(lines)
    assert "1 suspiciously active users with 85.7% of the rows: bot (300 rows)" in text
    assert "warning: no test edges" in text
    assert "warning: no validation edges" in text


def test_the_cache_is_keyed_by_content_and_the_options_that_matter(
    tmp_path: Path, run: Any, lines: list[str], own_cache: Path
) -> None:
    data = {"input": write_edges(tmp_path / "log.parquet", BLOCK)}
    first = run(data, out="")
    assert own_cache in Path(first.path).parents
    assert not any("prepared before" in line for line in lines)
    again = run(data, out="", train={"epochs": 3}, optim={"lr": 0.1})
    assert again.path == first.path
    assert any("prepared before" in line for line in lines)
    assert run(data, out="", run={"seed": 1}).path != first.path
    assert run(data, out="", partition={"parts": 2}).path != first.path
    assert run({**data, "test_ratio": 0.2}, out="").path != first.path
    sampled = {"partition": {"balance": "work"}}
    assert run(data, out="", **sampled, sampler={"fanout": [2, 2]}).path != run(data, out="", **sampled).path
    assert run(data, out="", sampler={"fanout": [2, 2]}).path == first.path
    write_edges(tmp_path / "log.parquet", BLOCK[1:])
    assert run(data, out="").path != first.path
    # The seed does not enter where nothing is left to it.
    given = {key: write_edges(tmp_path / f"{key}.parquet", BLOCK[k::3]) for k, key in enumerate(KEYS)}
    assert run(given, out="").path == run(given, out="", run={"seed": 1}).path


KEYS = ("input", "valid_input", "test_input")


def test_a_damaged_dataset_in_the_cache_says_what_to_remove(tmp_path: Path, run: Any) -> None:
    data = {"input": write_edges(tmp_path / "log.parquet", BLOCK)}
    dataset = run(data, out="", partition={"parts": 2})
    assert run(data, out="", cluster={"workers": 2}).path == dataset.path  # as many partitions by another option
    (Path(dataset.path) / "items.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"items\.parquet: .*truncated.*\(a copy in the cache: remove .*/prepared/log-"):
        run(data, out="", partition={"parts": 2})


def test_open_or_prepare_leaves_the_runs_folder_alone(tmp_path: Path) -> None:
    settings = config(data={"input": write_edges(tmp_path / "log.parquet", BLOCK)}, run={"out": str(tmp_path / "run")})
    assert open_or_prepare(settings, lambda line: None).n_fit == 64
    assert not (tmp_path / "run").exists()


def test_load_dataset_by_name_and_by_path(lines: list[str]) -> None:
    dataset = load_dataset("debian-deps", lines.append, partition={"parts": 2})
    assert (dataset.name, dataset.n_users, dataset.n_items) == ("debian-deps", 32_098, 11_745)
    assert (dataset.n_fit, dataset.n_valid, dataset.n_test) == (185_209, 23_242, 23_135)
    assert dataset.topology("full", "metis", 2).n_edges == dataset.n_train
    assert {"name", "text", "genre"} < set(dataset.item_table().column_names)
    same = load_dataset(dataset.path, lines.append, partition={"parts": 2})
    assert same.content_hash == dataset.content_hash
    with pytest.raises(UserError, match="no partitioning metis-1, only metis-2"):
        load_dataset(dataset.path, lines.append)


def test_a_partitioning_is_added_in_a_new_dataset(tmp_path: Path, run: Any) -> None:
    rows = random_log(4)
    columns = {"timestamp_column": "timestamp", "weight_column": "weight"}
    log = {"input": write_log(tmp_path / "log.parquet", rows), **columns}
    first = run(log, partition={"parts": 2})
    before = first.manifest
    both = run({"path": first.path}, out="both", partition={"parts": 3, "method": "random"})
    assert both.partitionings() == ["metis-2", "random-3"]
    assert PreparedDataset.open(first.path).manifest == before
    assert PreparedDataset.open(both.path).data_hash == first.data_hash
    direct = run(log, out="direct", partition={"parts": 3, "method": "random"})
    for file, facts in direct.manifest["files"].items():
        assert both.manifest["files"][file] == facts
    copy = run({"path": first.path}, out="copy", partition={"parts": 2})
    assert copy.content_hash == first.content_hash


def test_metis_gives_way_to_random_above_its_memory(tmp_path: Path, run: Any, lines: list[str]) -> None:
    log = write_log(tmp_path / "log.parquet", random_log(4))
    dataset = run({"input": log}, partition={"parts": 2, "memory_gib": 1e-6})
    assert any("METIS needs about" in line and "dealt at random instead" in line for line in lines)
    assert dataset.partitionings() == ["random-2"]
    assert dataset.partitioning("metis", 2) == "random-2"
    dataset.topology("fit", "metis", 2).validate()
    facts = dataset.manifest["partitions"]["random-2"]
    assert (facts["method"], facts["requested"], facts["reason"]) == (
        "random",
        "metis",
        "METIS did not fit in memory",
    )


def test_what_cannot_fit_is_refused_before_anything_is_read(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_log(tmp_path / "log.parquet", random_log(4))
    monkeypatch.setattr("distgnn.partition.prepare.read_logs", None)
    with monkeypatch.context() as patch:
        patch.setattr(resources, "available_memory", lambda: 1 << 20)
        with pytest.raises(UserError, match=r"preparing about 160 rows needs about .* 1\.0 MiB are available"):
            run({"input": log})
    monkeypatch.setattr("distgnn.partition.prepare._disk_bytes", lambda *_: 1 << 60)
    with pytest.raises(UserError, match=r"the dataset log needs about .* GiB at .* are left"):
        run({"input": log})
    assert os.listdir(tmp_path) == ["log.parquet"]


def test_the_stated_memory_covers_the_peak(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 1_000_000
    names = pa.array([f"name-{k}" for k in range(200_000)])
    table = {
        "user": names.take(pa.array(rng.integers(0, 200_000, n))),
        "item": names.take(pa.array(rng.integers(0, 50_000, n))),
        "timestamp": rng.integers(0, 10**9, n),
    }
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    script = (
        "import sys\nfrom distgnn.resources import peak_memory\nfrom distgnn.config_reading import load_config\n"
        "from distgnn.partition.prepare import prepare\n"
        "prepare(load_config(None, sys.argv[1:]))\nprint(peak_memory())"
    )
    overrides = [
        f"data.input={tmp_path / 'log.parquet'}",
        "data.timestamp_column=timestamp",
        f"run.out={tmp_path / 'o'}",
    ]
    result = subprocess.run(
        [sys.executable, "-c", script, *overrides], capture_output=True, text=True, check=True, env=os.environ
    )
    assert 150 << 20 < int(result.stdout.split()[-1]) < estimate_bytes(n, True, False)


def bad_logs(root: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], str]]:
    """(name, data section, partition section, words of the message)."""
    good = write_log(root / "good.csv", random_log(1))
    csv = lambda name, text: str((root / name).write_text(text) and root / name)  # noqa: E731
    yield "missing column", {"input": good, "item_column": "product"}, {}, r"good\.csv: no column 'product'"
    yield "missing time", {"input": good, "timestamp_column": "when"}, {}, r"good\.csv: no column 'when'"
    stamps = csv("stamps.csv", "user,item,timestamp\n1,2,3\n1,3,soon\n")
    yield "bad time", {"input": stamps, "timestamp_column": "timestamp"}, {}, r"stamps\.csv, row 2.*'soon'"
    yield "empty", {"input": csv("empty.csv", "user,item\n")}, {}, r"empty\.csv: the log is empty"
    yield "one user", {"input": csv("one.csv", "user,item\n1,2\n1,3\n")}, {}, r"one\.csv: the log has one user only"
    yield "one item", {"input": csv("item.csv", "user,item\n1,2\n3,2\n")}, {}, r"item\.csv: the log has one item only"
    yield "too many parts", {"input": good}, {"parts": 24}, r"partition\.parts = 24 is more than .* nodes \(23\)"
    yield "unknown dataset", {"name": "gowala"}, {}, "unknown dataset 'gowala'; did you mean"
    torn = root / "torn.parquet"
    torn.write_bytes(Path(write_log(root / "whole.parquet", random_log(1))).read_bytes()[:-200])
    yield "corrupt", {"input": str(torn)}, {}, r"torn\.parquet: cannot be read"
    yield "null user", {"input": csv("nulls.csv", "user,item\n1,2\n,3\n")}, {}, r"nulls\.csv, row 2.*user"
    yield "null item", {"input": csv("nulli.csv", "user,item\n1,2\n3,\n")}, {}, r"nulli\.csv, row 2.*item"
    yield "absent", {"input": str(root / "absent.csv")}, {}, r"absent\.csv: there is no such file"
    yield "time split", {"input": good, "split": "global_time"}, {}, "needs timestamps, and good has none: name their"
    yield "no test", {"input": good, "split": "given"}, {}, r"needs the test log: set data\.test_input"
    yield "valid alone", {"input": good, "valid_input": good}, {}, r"data\.valid_input goes with data\.test_input"
    yield "valid of a name", {"name": "debian-deps", "test_input": good}, {}, r"data\.test_input goes with data\.input"
    same = csv("same.csv", "user,item,timestamp\n1,2,5\n2,3,5\n")
    yield (
        "one instant",
        {"input": same, "timestamp_column": "timestamp", "split": "global_time", "test_ratio": 0.5},
        {},
        ("leaves nothing to train on: the log has 1 different timestamps"),
    )
    mixed = csv("mixed.csv", "user,item\na,2\nb,3\n")
    yield (
        "mixed keys",
        {"input": good, "test_input": mixed},
        {},
        r"mixed\.csv: user keys are text, but whole numbers in",
    )
    yield "no dataset", {"path": str(root / "nowhere")}, {}, "nowhere: no prepared dataset there"


BAD = [
    "missing column",
    "missing time",
    "bad time",
    "empty",
    "one user",
    "one item",
    "too many parts",
    "unknown dataset",
    "corrupt",
    "null user",
    "null item",
    "absent",
    "time split",
    "no test",
    "valid alone",
    "valid of a name",
    "one instant",
    "mixed keys",
    "no dataset",
]


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path: Path, run: Any, own_cache: Path, case: str) -> None:
    root = tmp_path / "logs"
    root.mkdir()
    _, data, partition, words = next(entry for entry in bad_logs(root) if entry[0] == case)
    for out in ("deep/out", ""):
        with pytest.raises(UserError, match=words) as caught:
            run(data, out=out, partition=partition)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "deep" / "out").exists()
    assert [p for folder in (tmp_path / "deep", own_cache) for p in folder.rglob("*") if p.is_file()] == []
    assert list(tmp_path.rglob("*.partial-*")) == []


def test_an_output_folder_in_use_is_refused_before_any_work(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_log(tmp_path / "log.parquet", random_log(4))
    dataset = run({"input": log})
    monkeypatch.setattr("distgnn.partition.prepare.read_logs", None)
    for data in ({"input": log}, {"path": dataset.path}):
        with pytest.raises(UserError, match=r"output folder .*out is in use: choose another run\.out or remove it"):
            run(data)
    assert PreparedDataset.open(dataset.path).manifest == dataset.manifest


def test_pymetis_is_asked_for_before_any_work(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write_log(tmp_path / "log.parquet", random_log(4))
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with monkeypatch.context() as patch:
        patch.setattr("distgnn.partition.prepare.read_logs", None)
        with pytest.raises(UserError, match="pymetis"):
            run({"input": log}, partition={"parts": 2})
    run({"input": log}, partition={"parts": 2, "method": "random"})
    run({"input": log}, out="single")


@pytest.mark.parametrize("nth", [0, 3, 7, 12, 17])
def test_a_disk_that_fills_up_at_any_file(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    log = write_log(tmp_path / "log.parquet", random_log(4))
    written = 0
    note = dataset_files.DatasetWriter._note

    def full(self: Any, name: str) -> None:
        nonlocal written
        if written == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += 1
        note(self, name)

    monkeypatch.setattr(dataset_files.DatasetWriter, "_note", full)
    with pytest.raises(UserError, match=r"No space left on device \(.* free\); free some space"):
        run({"input": log}, partition={"parts": 2})
    assert os.listdir(tmp_path) == ["log.parquet"]


def test_a_disk_that_fills_up_at_the_manifest(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write_log(tmp_path / "log.parquet", random_log(4))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"manifest\.json: cannot be written: No space left on device"):
        run({"input": log})
    assert os.listdir(tmp_path) == ["log.parquet"]


@pytest.mark.parametrize("size", ["64k", "400k"])
def test_a_disk_that_is_really_full(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    log = write_log(tmp_path / "log.parquet", random_log(4, n_users=4000, n_items=900, n_rows=40_000))
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        with pytest.raises(UserError, match=r"the dataset log needs about .*free some space"):
            run({"input": log}, out="small/out")
        monkeypatch.setattr(storage, "require_free_space", lambda *_: None)
        with pytest.raises(UserError, match=r"small/out: cannot be written: .*[Nn]o space left on device"):
            run({"input": log}, out="small/out")
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
