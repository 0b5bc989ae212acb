"""A store that answers late, with errors or with short reads: what passes is tried again, what stays ends in words."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs

from distgnn import storage
from distgnn.types import UserError
from tests.faults.faulty_store import Fault, FaultyStore, error, late, reset, short
from tests.faults.harness import Outcome, curve_difference, in_short
from tests.faults.small_runs import (
    EVERY,
    SmallRuns,
    end_in_words,
    end_well,
    runs,
    small_data,
    undisturbed,
)
from tests.moto_server import s3_bucket, s3_server

__all__ = ["runs", "s3_bucket", "s3_server", "small_data", "undisturbed"]
Note = Callable[[Outcome], None]
CONTENT = np.random.default_rng(0).bytes(300_000)
# Shorter than the product's, which `test_every_wait_is_bounded` looks at: the same bounds in less time.
QUICK = {"read_timeout": 1, "connect_timeout": 1, "retries": {"total_max_attempts": 2, "mode": "standard"}}
SERVER_ERROR, BUSY = error(500, "InternalError"), error(503, "SlowDown")
FAULTS: dict[str, Fault] = {"late": late(1.5), "500": SERVER_ERROR, "503": BUSY, "reset": reset, "short": short}


@pytest.fixture
def store(s3_bucket: str, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """Before the server of `s3_bucket`, for this process and those that it starts."""
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FSSPEC_S3", json.dumps({"config_kwargs": QUICK}))
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": QUICK})
    with FaultyStore(s3_server).serving() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy


QUICK_ONES = [pytest.param(name, marks=pytest.mark.slow if name in ("late", "503") else ()) for name in FAULTS]


def test_every_wait_is_bounded(s3_bucket: str) -> None:
    found, _ = storage.filesystem(s3_bucket)
    found.connect()
    config = found.s3.meta.config
    assert (config.connect_timeout, config.read_timeout) == (10, 15)
    assert config.retries["mode"] == "standard"
    assert found.retries * config.retries["total_max_attempts"] * config.read_timeout <= 180


@pytest.mark.parametrize("name", QUICK_ONES)
def test_what_passes_is_tried_again(store: FaultyStore, s3_bucket: str, name: str) -> None:
    uri = f"{s3_bucket}/file"
    if name != "short":  # of an answer without content there is nothing to cut
        store.misbehave(FAULTS[name], "PUT", times=1)
        storage.write_bytes(uri, CONTENT)
        assert len(store.faulty) == 1
    else:
        storage.write_bytes(uri, CONTENT)
    for read in (storage.read_bytes, lambda uri: storage.local_copy(uri).read_bytes()):
        store.misbehave(FAULTS[name], "GET", "file", times=1)
        assert read(uri) == CONTENT
        assert len(store.faulty) == 1
    store.misbehave(FAULTS[name], "GET", "file", times=1)
    assert len(storage.sha256_of(uri)) == 64
    assert len(store.faulty) == 1


@pytest.mark.parametrize("name", QUICK_ONES)
def test_what_stays_ends_in_one_line_within_its_time(store: FaultyStore, s3_bucket: str, name: str) -> None:
    uri = f"{s3_bucket}/file"
    storage.write_bytes(uri, CONTENT)
    started = time.monotonic()
    store.misbehave(FAULTS[name], "GET", "file")
    for read in (storage.read_bytes, storage.local_copy, storage.sha256_of):
        with pytest.raises(UserError, match=f"{uri}: cannot be read: "):
            read(uri)
    if name != "short":
        store.misbehave(FAULTS[name], "PUT")
        with pytest.raises(UserError, match=f"{uri}: cannot be written: "):
            storage.write_bytes(uri, CONTENT)
    assert time.monotonic() - started < 60
    store.misbehave(short, times=0)
    assert storage.read_bytes(uri) == CONTENT
    assert not list((storage.cache_dir()).rglob("*.partial-*"))


def test_a_download_that_ends_early_without_an_error_is_noticed(
    store: FaultyStore, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store whose client passes on what came."""
    uri = f"{s3_bucket}/file"
    storage.write_bytes(uri, CONTENT)
    whole = storage._blocks
    monkeypatch.setattr(storage, "_blocks", lambda uri, source: list(whole(uri, source))[:-1])
    with pytest.raises(UserError, match="cannot be read: only 0 of its 300000 bytes came"):
        storage.local_copy(uri)


def test_a_copy_in_the_cache_that_was_damaged_is_fetched_again(store: FaultyStore, s3_bucket: str) -> None:
    uri = f"{s3_bucket}/file"
    storage.write_bytes(uri, CONTENT)
    facts = {"bytes": len(CONTENT), "sha256": storage.sha256_of(uri)}
    copy = storage.checked_copy(uri, facts, "dataset", "prepare it again")
    for damaged in (CONTENT[:-5], CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])):
        copy.write_bytes(damaged)
        assert storage.checked_copy(uri, facts, "dataset", "prepare it again").read_bytes() == CONTENT


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_run_on_a_store_that_misbehaves_now_and_then_is_the_undisturbed_one(
    store: FaultyStore, s3_bucket: str, runs: SmallRuns, undisturbed: Path, note: Note, name: str
) -> None:
    runs.run = Path("-")
    method, path = ("GET", "checkpoints") if name == "short" else ("PUT", "shard-0001")
    store.misbehave(FAULTS[name], method, path, times=1)
    data = ("--data", str(runs.dataset), "--out", f"{s3_bucket}/run")
    run = runs.start("train", *data)
    end_well(run)
    if name == "short":
        run = runs.start("train", *data, "--resume")
        end_well(run)
    assert store.faulty
    assert curve_difference(f"{s3_bucket}/run", undisturbed) == ""
    note(Outcome(f"store: {name}, once", "checkpoint", EVERY, "tried again; same curve", run.seconds))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAULTS if name != "short"])
def test_a_store_that_fails_for_good_stops_the_run_which_then_goes_on(
    store: FaultyStore, s3_bucket: str, runs: SmallRuns, undisturbed: Path, note: Note, name: str
) -> None:
    uri = f"{s3_bucket}/run"
    data = ("--data", str(runs.dataset), "--out", uri)
    store.misbehave(FAULTS[name], "PUT", f"step-{2 * EVERY:08d}-fit/shard-0001")
    run = runs.start("train", *data)
    line = end_in_words(run, 2, "shard-0001.safetensors: cannot be written: ")
    note(Outcome(f"store: {name}, for good", "checkpoint", 2 * EVERY, in_short(line), run.seconds))
    store.misbehave(short, times=0)
    said = end_well(runs.start("train", *data, "--resume"))
    assert f"going on from fit step {EVERY} on 2 workers" in said
    assert curve_difference(uri, undisturbed) == ""
