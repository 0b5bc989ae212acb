"""What a dataset refuses to be opened with, and how it is found again."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn import storage
from distgnn.partition import dataset_files
from distgnn.partition.dataset import PreparedDataset, check_no_leak
from distgnn.partition.dataset_files import content_hash
from distgnn.partition.prepare import prepare
from distgnn.types import UserError
from tests.moto_server import s3_bucket, s3_server
from tests.unit.partition.logs import config, random_log, write_log

__all__ = ["s3_bucket", "s3_server"]


def quiet(line: str) -> None:
    """Swallow a progress line."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template")
    settings = config(
        data={
            "input": write_log(root / "log.csv", random_log(1)),
            "timestamp_column": "timestamp",
            "test_ratio": 0.2,
            "valid_ratio": 0.2,
        },
        partition={"parts": 2},
        run={"out": str(root / "dataset")},
    )
    prepare(settings, log=quiet)
    return root / "dataset"


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "dataset"))


FILES = [
    "users.parquet",
    "edges/valid.parquet",
    "partitions/metis-2/node_id.npy",
    "partitions/metis-2/fit/user_offsets.npy",
    "partitions/metis-2/full/part-0001/indices.npy",
    "partitions/metis-2/fit/part-0000/time.npy",
    "partitions/metis-2/fit/part-0000/time_place.npy",
]


@pytest.mark.parametrize("file", FILES)
def test_a_missing_truncated_or_altered_file_is_named(folder: Path, file: str) -> None:
    path = folder / file
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match=f"{file}: missing"):
        PreparedDataset.open(str(folder))
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"{file}: has .* bytes .*truncated"):
        PreparedDataset.open(str(folder))
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{file}: altered"):
        PreparedDataset.open(str(folder))
    path.write_bytes(content)
    assert PreparedDataset.open(str(folder)).n_users == 14


def test_every_file_is_checked(folder: Path) -> None:
    for file in PreparedDataset.open(str(folder)).manifest["files"]:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content + b"x")
        with pytest.raises(UserError, match=file):
            PreparedDataset.open(str(folder))
        (folder / file).write_bytes(content)


def test_a_missing_or_altered_manifest_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    for change, words in (
        ({"counts": {**manifest["counts"], "n_users": 3}}, "altered"),
        ({"files": {k: v for k, v in manifest["files"].items() if "indices" not in k}}, "altered"),
        ({"files": None}, "altered"),
        ({"format": "other"}, "not the manifest of a prepared dataset"),
        ({"format_version": 99}, "format version 99, this distgnn reads 1"),
    ):
        (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(UserError, match=f"manifest.json: .*{words}"):
            PreparedDataset.open(str(folder))
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: not valid JSON"):
        PreparedDataset.open(str(folder))
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no prepared dataset there \(no manifest\.json"):
        PreparedDataset.open(str(folder))
    with pytest.raises(UserError, match="no prepared dataset there"):
        PreparedDataset.open(str(folder / "nowhere"))


def test_without_verification_a_damaged_array_is_named_when_used(folder: Path) -> None:
    path = folder / "partitions/metis-2/fit/part-0000/indices.npy"
    path.write_bytes(b"not an array")
    dataset = PreparedDataset.open(str(folder), verify=False)
    with pytest.raises(UserError, match=r"indices\.npy: damaged"):
        dataset.topology("fit", "metis", 2)
    (folder / "edges/test.parquet").write_bytes(b"not a table")
    with pytest.raises(UserError, match=r"test\.parquet: damaged"):
        dataset.edges("test")


def test_a_sound_file_that_memory_is_too_short_for_is_not_called_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = "partitions/metis-2/fit/part-0000/indices.npy"
    np.lib.format.open_memmap(folder / file, "w+", np.int32, (1 << 26,))  # takes no room: it is never written
    dataset = PreparedDataset.open(str(folder), verify=False)
    dataset.manifest["files"][file]["bytes"] = (folder / file).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (1 << 26), before[1]))
    try:
        with pytest.raises(UserError, match=r"indices\.npy: out of memory: .*; use a larger machine"):
            dataset.array(file)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert len(dataset.array(file)) == 1 << 26

    def refuse(*_: object, **__: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 4096 failed")

    monkeypatch.setattr(pq, "read_table", refuse)
    with pytest.raises(UserError, match=r"test\.parquet: out of memory: malloc of size 4096 failed; use a larger"):
        dataset.edges("test")


def test_an_unknown_partitioning_says_which_there_are(folder: Path) -> None:
    dataset = PreparedDataset.open(str(folder))
    assert dataset.partitionings() == ["metis-2"]
    with pytest.raises(UserError, match=r"no partitioning random-4, only metis-2; make .*distgnn prepare .*parts=4"):
        dataset.topology("fit", "random", 4)


def test_topologies_are_mapped_read_only(folder: Path) -> None:
    topology = PreparedDataset.open(str(folder)).topology("full", "metis", 2)
    for part in range(2):
        for array in topology.part_arrays(part):
            assert not array.flags.writeable
            assert not array.flags.owndata


def test_topologies_with_times(folder: Path) -> None:
    dataset = PreparedDataset.open(str(folder))
    plain, dated = (dataset.topology("full", "metis", 2, times=times) for times in (False, True))
    dated.validate()
    assert not plain.has_times
    edges = [len(dated.part_arrays(p)[1]) for p in range(2)]
    values = sum(2 * e + sum((n // 16 + 1) * 16 for n in (e, e // 16, e // 256)) for e in edges)
    assert dated.nbytes() == plain.nbytes() + 4 * values
    headers = 2 * 6 * 128
    assert dataset.topology_bytes("full", "metis", 2, times=True) == dated.nbytes() + headers
    own = dataset.topology("full", "metis", 2, range(1, 2), times=True)
    node = int(own.offsets[1, 0])
    for ours, theirs in zip(own.row_times(node), dated.row_times(node), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_times_that_are_not_there_are_refused(folder: Path, tmp_path: Path) -> None:
    """Of a log without them, and of a dataset from before rows were written by time."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: facts for name, facts in manifest["files"].items() if "time_place" not in name}
    manifest["content_hash"] = content_hash(manifest)
    storage.write_json(str(folder / "manifest.json"), manifest)
    old = PreparedDataset.open(str(folder))
    old.topology("fit", "metis", 2).validate()
    with pytest.raises(UserError, match=r"time_place.npy is missing\); prepare it again, or set .* = false"):
        old.topology("fit", "metis", 2, times=True)
    settings = config(
        data={"input": write_log(tmp_path / "log.csv", random_log(1))}, run={"out": str(tmp_path / "out")}
    )
    with pytest.raises(UserError, match="no timestamps, and sampler.time_respecting = true goes by them"):
        prepare(settings, log=quiet).topology("fit", "metis", 1, times=True)


def weighted_dataset(folder: Path, weights: np.ndarray) -> PreparedDataset:
    rows = random_log(1)
    table = {"user": [r[0] for r in rows], "item": [r[1] for r in rows], "w": np.resize(weights, len(rows))}
    folder.mkdir()
    pq.write_table(pa.table(table), folder / "log.parquet")
    settings = config(
        data={"input": str(folder / "log.parquet"), "weight_column": "w"},
        partition={"parts": 2},
        run={"out": str(folder / "dataset")},
    )
    return prepare(settings, log=quiet)


def test_topologies_with_weights(tmp_path: Path) -> None:
    dataset = weighted_dataset(tmp_path / "a", np.array([0.0, 1.5, 4.0, 0.25]))
    plain, weighted = (dataset.topology("full", "metis", 2, weights=weights) for weights in (False, True))
    weighted.validate()
    assert (plain.has_weights, weighted.has_weights) == (False, True)
    total = sum(dataset.edge_table(split)["weight"].to_numpy().sum() for split in ("train", "valid"))
    assert sum(weighted.row_weights(node).sum() for node in range(weighted.n_nodes)) == pytest.approx(2 * total)
    assert weighted.nbytes() == plain.nbytes() + 2 * dataset.n_train * 4
    headers = 2 * 3 * 128
    assert dataset.topology_bytes("full", "metis", 2, weights=True) == weighted.nbytes() + headers
    assert weighted.table_bytes() == 2 * dataset.n_train * (16 + 8)
    own = dataset.topology("full", "metis", 2, range(1, 2), weights=True)
    node = int(own.offsets[1, 0])
    assert own.row_weights(node).tolist() == weighted.row_weights(node).tolist()
    stated = dataset.weight_table_bytes("full", "metis", 2, range(1, 2))
    assert own.table_bytes() < stated < own.table_bytes() + 1000
    assert plain.table_bytes() == 0
    weighted.drop_tables()
    assert weighted.table_bytes() == 0


def test_weights_that_cannot_be_drawn_by_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights, and sampler.weighted = true goes by them; prepare the log with"):
        PreparedDataset.open(str(folder)).topology("fit", "metis", 2, weights=True)
    negative = weighted_dataset(tmp_path / "a", np.array([1.0, -2.5, 1.0]))
    negative.topology("full", "metis", 2).validate()
    with pytest.raises(UserError, match=r"weights of at least 0, and an edge has -\d.*: prepare a log without such"):
        negative.topology("full", "metis", 2, weights=True)


def _tamper(folder: Path, file: str, array: np.ndarray) -> None:
    """Replace an array, and make the manifest agree."""
    manifest = json.loads((folder / "manifest.json").read_text())
    writer = dataset_files.DatasetWriter(folder)
    writer.array(file, array)
    manifest["files"].update(writer.files)
    manifest["content_hash"] = content_hash(manifest)
    storage.write_json(str(folder / "manifest.json"), manifest)


@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize(("phase", "split"), [("fit", "valid"), ("fit", "test"), ("full", "test")])
def test_a_planted_leak_is_refused(folder: Path, side: str, phase: str, split: str) -> None:
    """One neighbour in one row is exchanged for the endpoint of a held-out edge, with all checksums right."""
    dataset = PreparedDataset.open(str(folder))
    topology = dataset.topology(phase, "metis", 2)
    stable = np.asarray(topology.stable_id)
    for user, item in zip(*dataset.edges(split), strict=True):
        ends = [int(topology.node_id[user]), int(topology.node_id[dataset.n_users + item])]
        node, other = ends if side == "user" else ends[::-1]
        part = int(node >= topology.offsets[1, 0])
        indptr, indices = (np.array(a) for a in topology.part_arrays(part))
        row = slice(*indptr[node - topology.offsets[part, 0] :][:2])
        place = row.start + int(np.searchsorted(stable[indices[row]], stable[other]))
        if place < row.stop:  # the row stays in order
            break
    indices[place] = other
    _tamper(folder, f"partitions/metis-2/{phase}/part-{part:04d}/indices.npy", indices)
    with pytest.raises(UserError, match=f"metis-2/{phase}: holds 1 of the {split} edges, among them user {user}, item"):
        PreparedDataset.open(str(folder))
    with pytest.raises(UserError, match="would see what it is judged by"):
        check_no_leak(PreparedDataset.open(str(folder), verify=False))


def test_a_log_and_a_dataset_in_object_storage(s3_bucket: str, tmp_path: Path, own_cache: Path) -> None:
    log = storage.join(s3_bucket, "logs", "log.csv")
    storage.write_bytes(log, Path(write_log(tmp_path / "log.csv", random_log(2))).read_bytes())
    local = prepare(config(data={"input": log}, run={"out": str(tmp_path / "local")}), log=quiet)
    uri = storage.join(s3_bucket, "datasets", "small")
    remote = prepare(config(data={"input": log}, run={"out": uri}), log=quiet)
    assert remote.content_hash == local.content_hash
    opened = PreparedDataset.open(uri)
    topology = opened.topology("fit", "metis", 1)
    topology.validate()
    assert topology.user_offsets.tolist() == local.topology("fit", "metis", 1).user_offsets.tolist()
    with pytest.raises(UserError, match="is in use"):
        prepare(config(data={"input": log}, run={"out": uri}), log=quiet)
    file = storage.join(uri, "edges", "test.parquet")
    content = storage.read_bytes(file)
    shutil.rmtree(own_cache / "objects")
    storage.write_bytes(file, content[:-1] + b"?")
    with pytest.raises(UserError, match=r"test\.parquet: altered"):
        PreparedDataset.open(uri)
    storage.filesystem(file)[0].rm_file(storage.filesystem(file)[1])
    with pytest.raises(UserError, match=r"test\.parquet: missing"):
        PreparedDataset.open(uri)


def test_a_phase_without_edges_in_a_partition_can_be_mapped(tmp_path: Path) -> None:
    # Users 2 and 3 have one edge each, both in the test.
    pq.write_table(pa.table({"user": [0, 0, 1, 1], "item": [0, 1, 0, 1]}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"user": [2, 3], "item": [2, 3]}), tmp_path / "test.parquet")
    settings = config(
        data={"input": str(tmp_path / "train.parquet"), "test_input": str(tmp_path / "test.parquet")},
        partition={"parts": 8, "method": "random"},
        run={"out": str(tmp_path / "out")},
    )
    prepare(settings, log=quiet)
    topology = PreparedDataset.open(str(tmp_path / "out")).topology("full", "random", 8)
    topology.validate()
    assert topology.n_edges == 4
    assert [len(topology.row(int(topology.node_id[n]))) for n in range(8)] == [2, 2, 0, 0, 2, 2, 0, 0]
