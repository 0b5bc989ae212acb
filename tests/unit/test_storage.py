from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from distgnn import publishing, storage
from distgnn.types import UserError
from tests.moto_server import s3_bucket, s3_server

__all__ = ["s3_bucket", "s3_server"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place on each kind of store."""
    if request.param == "local":
        return str(tmp_path / "data")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return request.getfixturevalue("s3_bucket")


def test_a_file_is_replaced_when_the_new_one_is_whole(root: str) -> None:
    uri = storage.join(root, "new", "file.json")
    storage.require_writable(uri, b"tried")
    assert not storage.exists(uri)
    for content in ("first", "second"):
        with publishing.replace_file(uri) as path:
            path.write_text(content)
        assert storage.read_bytes(uri) == content.encode()
    with pytest.raises(ZeroDivisionError), publishing.replace_file(uri) as path:  # noqa: PT012
        path.write_text("half")
        raise ZeroDivisionError
    assert storage.read_bytes(uri) == b"second"
    assert storage.names_in(storage.join(root, "new")) == ["file.json"]


def test_uris() -> None:
    assert all(map(storage.is_local, ("/a/b", "a/b", "file:///a")))
    assert not any(map(storage.is_local, ("s3://bucket/a", "simplecache::s3://bucket/a")))
    assert storage.join("s3://bucket/a/", "b", "c/d") == "s3://bucket/a/b/c/d"
    assert storage.join("/", "a") == "/a"
    assert storage.join("a", "b") == "a/b"
    with pytest.raises(UserError, match="nosuch"):
        storage.filesystem("nosuch://a/b")


def test_bytes_and_json_come_back(root: str) -> None:
    uri = storage.join(root, "deep", "file.json")
    assert not storage.exists(uri)
    storage.write_json(uri, {"a": [1, 2], "b": "ü"})
    assert storage.exists(uri)
    assert storage.read_json(uri) == {"a": [1, 2], "b": "ü"}
    storage.write_bytes(uri, b"other")
    assert storage.read_bytes(uri) == b"other"
    assert storage.size_of(uri) == 5
    assert storage.sha256_of(uri) == hashlib.sha256(b"other").hexdigest()
    assert storage.local_copy(uri).read_bytes() == b"other"


def test_names_in_a_folder_and_removing_a_file(root: str) -> None:
    assert storage.names_in(storage.join(root, "runs")) == []
    for name in ("b", "a/deep"):
        storage.write_bytes(storage.join(root, "runs", name), b"x")
    assert storage.names_in(storage.join(root, "runs")) == ["a", "b"]
    for _ in range(2):
        storage.remove_file(storage.join(root, "runs", "b"))
    assert storage.names_in(storage.join(root, "runs")) == ["a"]


def test_missing_and_damaged_files_are_named(root: str) -> None:
    uri = storage.join(root, "absent.json")
    for read in (storage.read_bytes, storage.read_json, storage.sha256_of, storage.size_of, storage.local_copy):
        with pytest.raises(UserError, match=r"absent\.json: there is no such file"):
            read(uri)
    for content in (b"{", b"[1]", b"\xff\xfe"):
        storage.write_bytes(uri, content)
        with pytest.raises(UserError, match=r"absent\.json.*damaged"):
            storage.read_json(uri)


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    storage.write_bytes(str(target), b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    words = r"file: cannot be written: No space left on device \(3 bytes wanted, .* free\); free some space"
    with pytest.raises(UserError, match=words):
        storage.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_writing_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"new")


def test_local_copy_downloads_a_content_once(own_cache: Path) -> None:
    store = fsspec.filesystem("memory")
    store.store.clear()
    storage.write_bytes("memory://a/x.npy", b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    copy = storage.local_copy("memory://a/x.npy", digest)
    assert copy.read_bytes() == b"abc"
    assert own_cache in copy.parents
    store.store.clear()  # gone at its source: the copy still serves
    assert storage.local_copy("memory://a/x.npy", digest) == copy
    storage.write_bytes("memory://a/x.npy", b"abd")
    with pytest.raises(UserError, match=r"x\.npy: altered or truncated"):
        storage.local_copy("memory://a/x.npy", hashlib.sha256(b"abe").hexdigest())
    assert not list((own_cache / "objects").glob(".partial-*"))


def test_local_copy_without_a_hash_notices_a_new_version() -> None:
    fsspec.filesystem("memory").store.clear()
    storage.write_bytes("memory://a/x", b"one")
    first = storage.local_copy("memory://a/x")
    assert storage.local_copy("memory://a/x") == first
    storage.write_bytes("memory://a/x", b"three")
    assert storage.local_copy("memory://a/x").read_bytes() == b"three"


def test_publish_shows_all_at_once(root: str) -> None:
    uri = storage.join(root, "out")
    with publishing.publish_directory(uri) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "part").write_bytes(b"p")
        (staging / storage.MANIFEST).write_bytes(b"{}")
        assert not storage.exists(uri)
    assert storage.read_bytes(storage.join(uri, "sub", "part")) == b"p"
    assert storage.read_json(storage.join(uri, storage.MANIFEST)) == {}
    assert not staging.exists()
    with (
        pytest.raises(UserError, match=r"output folder .*out is in use: choose another run\.out"),
        publishing.publish_directory(uri),
    ):
        raise AssertionError("a used target must be refused before any work")


def _publish(uri: str, fill: Callable[[Path], None]) -> None:
    with publishing.publish_directory(uri) as staging:
        fill(staging)


def test_publish_removes_everything_on_an_error(root: str) -> None:
    uri = storage.join(root, "out")
    seen: list[Path] = []

    def fill(staging: Path) -> None:
        seen.append(staging)
        (staging / "part").write_bytes(b"p")
        raise KeyError

    with pytest.raises(KeyError):
        _publish(uri, fill)
    assert not seen[0].exists()
    assert not storage.exists(uri)
    if storage.is_local(uri):
        assert os.listdir(root) == []


def test_publish_into_an_empty_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    with publishing.publish_directory(str(target)) as staging:
        (staging / "part").write_bytes(b"p")
    assert os.listdir(target) == ["part"]
    assert target.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_second_of_two_publishers_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "out")

    def fill(second: Path) -> None:
        (second / "file").write_bytes(b"2")
        _publish(uri, lambda first: (first / "file").write_bytes(b"1") and None)

    with pytest.raises(UserError, match="in use"):
        _publish(uri, fill)
    assert (tmp_path / "out" / "file").read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["out"]


def test_publish_onto_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="in use"), publishing.publish_directory(str(tmp_path / "out")):
        pass
    assert (tmp_path / "out").read_text() == "mine"


def test_no_space_while_publishing_is_a_user_error(tmp_path: Path) -> None:
    uri = str(tmp_path / "out")

    def fill(staging: Path) -> None:
        (staging / "part").write_bytes(b"p")
        with open("/dev/full", "wb") as full:
            full.write(b"x")

    with pytest.raises(UserError, match="No space left"):
        _publish(uri, fill)
    assert os.listdir(tmp_path) == []


def test_an_abandoned_staging_folder_goes_and_a_live_one_stays(tmp_path: Path) -> None:
    dead, live = (tmp_path / f".out.partial-{name}" for name in ("dead", "live"))
    for folder in (dead, live):
        folder.mkdir()
        (folder / "part").write_bytes(b"p")
    lock = os.open(live, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with publishing.publish_directory(str(tmp_path / "out")):
        assert not dead.exists()
        assert (live / "part").exists()
    os.close(lock)


def test_a_killed_publisher_leaves_no_target(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom distgnn import publishing\n"
        "with publishing.publish_directory(sys.argv[1]) as staging:\n"
        "    (staging / 'manifest.json').write_text('{}')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    uri = str(tmp_path / "out")
    assert subprocess.run([sys.executable, "-c", script, uri], check=False).returncode == -9
    assert not os.path.exists(uri)
    with publishing.publish_directory(uri):
        pass
    assert os.listdir(tmp_path) == ["out"]


def test_a_remote_publish_sends_the_manifest_last_and_takes_back_what_it_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    store = fsspec.filesystem("memory")
    store.store.clear()
    sent: list[str] = []
    send = type(store).put_file

    def put_file(self: object, local: str, remote: str, **options: object) -> None:
        sent.append(remote.rsplit("/", 1)[-1])
        if remote.endswith(storage.MANIFEST):
            raise RuntimeError("bucket says no")
        send(self, local, remote, **options)

    monkeypatch.setattr(type(store), "put_file", put_file)

    def fill(staging: Path) -> None:
        for name in ("a", storage.MANIFEST, "z"):
            (staging / name).write_bytes(b"x")

    with pytest.raises(UserError, match="memory://a/out: cannot be written: bucket says no"):
        _publish("memory://a/out", fill)
    assert sent == ["a", "z", storage.MANIFEST]
    assert store.find("/a") == []


def test_a_store_that_cannot_be_reached_is_a_user_error(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="nosuchbucket"):
        storage.write_bytes("s3://nosuchbucket-xyz/a", b"x")
    with pytest.raises(UserError, match="no such file"):
        storage.read_bytes(storage.join(s3_bucket, "absent"))


def test_free_space(tmp_path: Path) -> None:
    storage.require_free_space(str(tmp_path / "not" / "there"), 1, "a test")
    with pytest.raises(UserError, match=r"the dataset needs about 1048576\.00 GiB at .*free some space"):
        storage.require_free_space(str(tmp_path / "out"), 1 << 50, "the dataset")
    with pytest.raises(UserError, match="the dataset needs"):
        storage.require_free_space("memory://a", 1 << 60, "the dataset")
