from __future__ import annotations

import dataclasses
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn.data import registry
from distgnn.data.catalogue import DOWNLOADABLE, RemoteFile
from distgnn.data.dataset_folder import write_dataset_folder
from distgnn.data.registry import BUNDLED, find_dataset, format_datasets, list_datasets
from distgnn.types import UserError
from tests.unit.data.http_server import Site

TRAIN = "0 0 1 2\n1 0 2\n2 1\n"
TEST = "0 3\n1\n2 0\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DISTGNN_DATA", raising=False)
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DISTGNN_DATA with a dataset `mine`."""
    folder = tmp_path / "data" / "mine"
    make_folder(folder)
    monkeypatch.setenv("DISTGNN_DATA", str(tmp_path / "data"))
    return folder


def make_folder(folder: Path, **facts: Any) -> None:
    folder.mkdir(parents=True)
    pairs = pa.table({"user": pa.array([0, 1], pa.int32()), "item": pa.array([0, 1], pa.int32())})
    timed = pairs.append_column("timestamp", pa.array([5, 6]))
    tables = {"train": timed, "test": timed, "items": pa.table({"item": [0, 1], "name": ["a", "b"]}), "social": pairs}
    card = {"name": folder.name, "n_users": 2, "n_items": 2, "n_train": 2, "n_test": 2, "source": "by hand", **facts}
    write_dataset_folder(folder, tables, card)


@pytest.fixture
def published(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A small `gowalla` behind the real registry."""
    site.files = {"train.txt": TRAIN.encode(), "test.txt": TEST.encode()}
    small = dataclasses.replace(
        DOWNLOADABLE["gowalla"],
        files=tuple(RemoteFile(name, site.url(name)) for name in ("train.txt", "test.txt")),
        n_users=3,
        n_items=4,
        n_train=6,
        n_test=2,
    )
    monkeypatch.setitem(DOWNLOADABLE, "gowalla", small)
    return site


def refused(name: str) -> str:
    with pytest.raises(UserError) as caught:
        find_dataset(name)
    return str(caught.value)


def test_bundled_dataset_is_found() -> None:
    found = find_dataset("debian-deps")
    assert found.train == str(BUNDLED / "debian-deps" / "train.parquet")
    assert found.columns == {"user": "user", "item": "item", "timestamp": ""}
    assert not found.valid_is_subset_of_train
    assert None not in (found.valid, found.test, found.items, found.users)
    assert found.card["n_users"] == 32_098


def test_own_folder_is_found_first_and_whole(own: Path) -> None:
    found = find_dataset("mine")
    assert found.train == str(own / "train.parquet")
    assert (found.valid, found.users) == (None, None)
    assert found.columns["timestamp"] == "timestamp"
    shutil.copytree(own, own.parent / "debian-deps")
    assert find_dataset("debian-deps").train.startswith(str(own.parent))


def test_validation_inside_train_is_told(own: Path) -> None:
    make_folder(own.parent / "inside", valid_is_subset_of_train=True)
    assert find_dataset("inside").valid_is_subset_of_train


@pytest.mark.parametrize("file", ["train.parquet", "items.parquet", "social.parquet"])
def test_missing_file_is_named(own: Path, file: str) -> None:
    (own / file).unlink()
    assert refused("mine").startswith(f"{own / file}: missing")


@pytest.mark.parametrize("file", ["train.parquet", "items.parquet", "social.parquet"])
def test_truncated_file_is_named(own: Path, file: str) -> None:
    (own / file).write_bytes((own / file).read_bytes()[:-1])
    assert refused("mine").startswith(f"{own / file}: has ")


@pytest.mark.parametrize("file", ["train.parquet", "test.parquet", "items.parquet"])
def test_altered_file_of_the_same_size_is_named(own: Path, file: str) -> None:
    data = bytearray((own / file).read_bytes())
    data[30] ^= 1
    (own / file).write_bytes(data)
    assert refused("mine").startswith(f"{own / file}: its sha256 is not")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', '{"files": {"train.parquet": 3}}'])
def test_damaged_card_is_named(own: Path, text: str) -> None:
    (own / "dataset.json").write_text(text)
    assert refused("mine").startswith(f"{own / 'dataset.json'}: ")
    (entry,) = (entry for entry in list_datasets() if entry.name == "mine")
    assert entry.state.startswith("unusable: ")


def test_card_without_files_takes_what_is_there(own: Path) -> None:
    (own / "dataset.json").write_text(json.dumps({"name": "mine"}))
    assert find_dataset("mine").items == str(own / "items.parquet")
    (own / "train.parquet").unlink()
    assert refused("mine").startswith(f"{own}: no train.parquet")


def test_missing_data_folder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISTGNN_DATA", str(tmp_path / "nowhere"))
    assert refused("debian-deps").startswith(f"DISTGNN_DATA={tmp_path}/nowhere: no such folder")


@pytest.mark.parametrize(
    ("name", "near"), [("gowala", "gowalla"), ("debian_deps", "debian-deps"), ("ml100k", "ml-100k"), ("min", "mine")]
)
def test_unknown_name_gets_the_nearest(own: Path, name: str, near: str) -> None:
    text = refused(name)
    assert text.startswith(f"unknown dataset {name!r}; did you mean ")
    assert near in text


@pytest.mark.parametrize("name", ["", "..", "../data/mine", "/etc", "a/b", ".hidden"])
def test_a_name_is_no_path(own: Path, name: str) -> None:
    assert refused(name).startswith("unknown dataset")


def test_download_convert_publish_and_find_again(published: Site, cache: Path) -> None:
    found = find_dataset("gowalla")
    assert found.train == str(cache / "datasets/gowalla/train.parquet")
    assert pq.read_table(found.train).to_pydict() == {"user": [0, 0, 0, 1, 1, 2], "item": [0, 1, 2, 0, 2, 1]}
    assert pq.read_table(found.test).to_pydict() == {"user": [0, 2], "item": [3, 0]}
    assert pq.read_schema(found.train).field("user").type == pa.int32()
    assert found.card["source"][0]["url"] == published.url("train.txt")
    assert len(found.card["source"][0]["sha256"]) == 64
    asked = len(published.requests)
    published.files.clear()
    assert find_dataset("gowalla") == found
    assert len(published.requests) == asked
    assert next(e for e in list_datasets() if e.name == "gowalla").state == "cached"


def test_download_that_breaks_is_resumed_and_nothing_half_done_is_found(published: Site, cache: Path) -> None:
    published.errors = [404]
    assert "HTTP 404" in refused("gowalla")
    assert not (cache / "datasets" / "gowalla").exists()
    published.drop_after = [7]
    find_dataset("gowalla")
    assert ("/train.txt", "bytes=7-") in published.requests


def test_other_counts_than_published_are_refused(published: Site, cache: Path) -> None:
    published.files["test.txt"] = TEST.replace("0 3", "0 3 1").encode()
    assert "n_test of the download is 3, but 2 is published" in refused("gowalla")
    assert not (cache / "datasets" / "gowalla").exists()


def test_changed_upstream_is_refused_after_the_first_time(published: Site, cache: Path) -> None:
    find_dataset("gowalla")
    shutil.rmtree(cache / "datasets")
    (cache / "downloads/gowalla/train.txt").unlink()
    published.files["train.txt"] = TRAIN.replace("2 1", "2 2").encode()
    published.etag = '"v2"'
    assert "of the first download" in refused("gowalla")


def test_without_network_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/ml-1m.zip"
        spec = dataclasses.replace(DOWNLOADABLE["ml-1m"], files=(RemoteFile("ml-1m.zip", url),))
        monkeypatch.setitem(DOWNLOADABLE, "ml-1m", spec)
        text = refused("ml-1m")
    assert text.startswith(f"dataset ml-1m: cannot download {url}: no connection")
    assert "DISTGNN_DATA/ml-1m" in text
    assert "\n" not in text


def test_list_has_every_state(own: Path, published: Site) -> None:
    find_dataset("gowalla")
    entries = {entry.name: entry for entry in list_datasets()}
    assert next(iter(entries)) == "debian-deps"
    assert {"gowalla", "yelp2018", "amazon-book", "ml-100k", "ml-1m", "ml-20m", "lastfm-hetrec", "mine"} < set(entries)
    assert entries["debian-deps"].state == "bundled"
    assert entries["gowalla"].state == "cached"
    assert entries["yelp2018"].state == "downloadable"
    assert entries["mine"].state == f"found in {own}"
    assert (entries["mine"].n_users, entries["mine"].n_valid, entries["mine"].source) == (2, None, "by hand")
    assert entries["ml-1m"].n_train + entries["ml-1m"].n_test == 1_000_209  # type: ignore[operator]
    assert (entries["lastfm-hetrec"].n_train, entries["lastfm-hetrec"].n_test) == (74_266, 18_568)


def test_table_for_the_terminal(own: Path) -> None:
    lines = format_datasets(list_datasets()).splitlines()
    assert lines[0].split() == ["name", "users", "items", "train", "valid", "test", "state", "source"]
    assert lines[1].split()[:7] == ["debian-deps", "32,098", "11,745", "185,209", "23,242", "23,135", "bundled"]
    mine = next(line for line in lines if line.startswith("mine"))
    assert mine.split()[1:6] == ["2", "2", "2", "-", "2"]
    assert f"found in {own}" in mine


def test_real_folders(monkeypatch: pytest.MonkeyPatch, data_root: Path) -> None:
    monkeypatch.setenv("DISTGNN_DATA", str(data_root))
    for entry in list_datasets():
        if entry.state.startswith("found"):
            found = find_dataset(entry.name)
            assert pq.read_metadata(found.train).num_rows == entry.n_train
    assert registry.find_dataset("gowalla").valid_is_subset_of_train
