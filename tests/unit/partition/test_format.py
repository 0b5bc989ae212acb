"""The dataset on disk against a slow, obvious implementation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from distgnn.partition.dataset import PreparedDataset
from distgnn.partition.prepare import prepare
from tests import naive_prepare
from tests.unit.partition.logs import Row, config, random_log, write_log

CASES = [("metis", 1), ("metis", 3), ("random", 4), ("random", 23)]


def prepared(tmp_path: Path, rows: list[Row], method: str, parts: int, **data: object) -> PreparedDataset:
    settings = config(
        data={
            "input": write_log(tmp_path / f"log-{method}-{parts}.parquet", rows),
            "name": "small",
            "timestamp_column": "timestamp",
            "weight_column": "weight",
            "test_ratio": 0.2,
            "valid_ratio": 0.15,
            **data,
        },
        partition={"method": method, "parts": parts},
        run={"out": str(tmp_path / f"{method}-{parts}")},
    )
    return prepare(settings, log=lambda line: None)


def labelled_pairs(dataset: PreparedDataset) -> dict[tuple[int, int], str]:
    return {
        pair: split
        for split in ("train", "valid", "test")
        for pair in zip(*(ids.tolist() for ids in dataset.edges(split)), strict=True)
    }


@pytest.mark.parametrize(("method", "parts"), CASES)
@pytest.mark.parametrize("text", [False, True])
def test_every_array_against_the_oracle(tmp_path: Path, method: str, parts: int, text: bool) -> None:
    rows = random_log(parts, text=text)
    dataset = prepared(tmp_path, rows, method, parts)
    users, items = (sorted({row[k] for row in rows}) for k in (0, 1))
    assert dataset.user_keys().to_pylist() == users
    assert dataset.item_keys().to_pylist() == items
    stable = [(users.index(u), items.index(i), t, w) for u, i, t, w in rows]
    expected = naive_prepare.deduplicate([stable])
    labels = labelled_pairs(dataset)
    assert set(labels) == set(expected)
    for split in ("train", "valid", "test"):
        table = dataset.edge_table(split)
        pairs = list(zip(table["user"].to_pylist(), table["item"].to_pylist(), strict=True))
        assert pairs == sorted(pairs)
        assert pairs
        assert table["timestamp"].to_pylist() == [expected[pair][1] for pair in pairs]
        assert table["weight"].to_pylist() == [expected[pair][2] for pair in pairs]

    folder = Path(dataset.path) / "partitions" / f"{method}-{parts}"
    load = lambda name: np.load(folder / name, allow_pickle=False)  # noqa: E731
    offsets, stable_id, node_id = load("offsets.npy"), load("stable_id.npy"), load("node_id.npy")
    assert (offsets.dtype, stable_id.dtype, node_id.dtype) == (np.int64, np.int32, np.int32)
    part = np.searchsorted(offsets[:, 2], node_id, side="right")
    oracle = naive_prepare.relabelled(part.tolist(), len(users), parts)
    for got, wanted in zip((offsets, stable_id, node_id), oracle, strict=True):
        assert got.tolist() == wanted.tolist()
    for phase, splits in (("fit", ["train"]), ("full", ["train", "valid"])):
        edges = sorted(pair for pair, split in labels.items() if split in splits)
        by_user, by_item = naive_prepare.stable_rows(edges, len(users), len(items))
        assert load(f"{phase}/user_offsets.npy").tolist() == np.cumsum([0, *map(len, by_user)]).tolist()
        for p in range(parts):
            start, item_start, end = offsets[p].tolist()
            names = ("indptr", "indices", "time", "time_fence", "time_neighbor", "time_place", "weight")
            arrays = [load(f"{phase}/part-{p:04d}/{n}.npy") for n in names]
            indptr, indices, time, fence, neighbor, place, weight = arrays
            assert [array.dtype for array in arrays] == [np.int64, *[np.int32] * 5, np.float32]
            assert len(indptr) == end - start + 1
            e = int(indptr[-1])
            assert len(indices) == len(neighbor) == len(place) == len(weight) == e
            assert len(time) == (e // 16 + 1) * 16
            coarse = (e // 16 // 16 + 1) * 16
            assert len(fence) == coarse + (e // 256 // 16 + 1) * 16
            assert fence[: e // 16].tolist() == time[15:e:16].tolist()
            assert fence[coarse : coarse + e // 256].tolist() == time[255:e:256].tolist()
            for node in range(start, end):
                row = slice(indptr[node - start], indptr[node - start + 1])
                own = int(stable_id[node])
                if node < item_start:
                    neighbours = by_user[own]
                    wanted = [int(node_id[len(users) + i]) for i in neighbours]
                    pairs = [(own, i) for i in neighbours]
                else:
                    neighbours = by_item[own]
                    wanted = [int(node_id[u]) for u in neighbours]
                    pairs = [(u, own) for u in neighbours]
                assert indices[row].tolist() == wanted
                times = [expected[pair][1] for pair in pairs]
                by_time = sorted(range(len(times)), key=lambda k, t=times: (t[k], k))
                assert time[row].tolist() == [times[k] for k in by_time]
                assert neighbor[row].tolist() == [wanted[k] for k in by_time]
                assert place[row].tolist() == [by_time.index(k) for k in range(len(times))]
                assert weight[row].tolist() == [expected[pair][2] for pair in pairs]


def stable_graph(dataset: PreparedDataset, phase: str, method: str, parts: int) -> list[list[int]]:
    """Neighbours' stable ids of every stable user, then of every stable item, in the order of the row."""
    topology = dataset.topology(phase, method, parts)
    topology.validate()
    return [np.asarray(topology.stable_id)[topology.row(node)].tolist() for node in np.asarray(topology.node_id)]


def test_every_number_of_partitions_holds_the_same_graph(tmp_path: Path) -> None:
    rows = random_log(7, n_users=40, n_items=30, n_rows=500)
    datasets = {(m, p): prepared(tmp_path, rows, m, p) for m, p in (("metis", 1), ("metis", 8), ("random", 8))}
    one = datasets["metis", 1]
    for (method, parts), dataset in datasets.items():
        assert dataset.data_hash == one.data_hash
        for phase in ("fit", "full"):
            assert stable_graph(dataset, phase, method, parts) == stable_graph(one, phase, "metis", 1)
            offsets = [d.topology(phase, *key).user_offsets.tolist() for key, d in datasets.items()]
            assert offsets[0] == offsets[1] == offsets[2]
    assert len({dataset.content_hash for dataset in datasets.values()}) == 3


def test_edge_ids_are_ranks_by_user_and_item(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, random_log(3), "metis", 4)
    topology = dataset.topology("fit", "metis", 4)
    user, item = dataset.edges("train")
    for edge in range(dataset.n_fit):
        owner = int(np.searchsorted(topology.user_offsets, edge, side="right")) - 1
        row = topology.row(int(topology.node_id[owner]))
        neighbour = row[edge - topology.user_offsets[owner]]
        assert (owner, int(topology.stable_id[neighbour])) == (user[edge], item[edge])


def test_the_order_of_the_log_does_not_change_a_byte(tmp_path: Path) -> None:
    rows = random_log(5)
    first = prepared(tmp_path, rows, "metis", 3)
    (tmp_path / "other").mkdir()
    second = prepared(tmp_path / "other", rows[::-1], "metis", 3)
    assert first.content_hash == second.content_hash
    assert first.manifest["files"] == second.manifest["files"]
    assert first.manifest == second.manifest


def test_the_manifest_lists_every_file_and_the_counts(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, random_log(6), "random", 4)
    root = Path(dataset.path)
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest == dataset.manifest
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert there == {*manifest["files"], "manifest.json"}
    assert dataset.n_users == len(dataset.user_keys()) == pq.read_table(root / "users.parquet").num_rows
    assert dataset.n_items == len(dataset.item_keys())
    sizes = [len(dataset.edges(split)[0]) for split in ("train", "valid", "test")]
    assert [dataset.n_fit, dataset.n_valid, dataset.n_test] == sizes
    assert dataset.n_train == sizes[0] + sizes[1]
    for phase, splits in (("fit", ["train"]), ("full", ["train", "valid"])):
        edges = np.concatenate([dataset.edges(split) for split in splits], axis=1)
        assert dataset.user_degree(phase).tolist() == np.bincount(edges[0], minlength=dataset.n_users).tolist()
        assert dataset.item_degree(phase).tolist() == np.bincount(edges[1], minlength=dataset.n_items).tolist()
    assert "small" not in str(manifest["config"])
    assert str(tmp_path) not in json.dumps(manifest)
