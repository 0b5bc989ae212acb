"""A file that changes while it is in use is named; one that was only touched, or replaced by its equal, is not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from distgnn.partition.files_in_use import FilesInUse
from distgnn.types import UserError

CONTENT = bytes(range(200))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "indices.npy"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def in_use(file: Path) -> FilesInUse:
    known = FilesInUse()
    known.note(file, "s3://there/indices.npy", {"bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()})
    known.note(file.with_name("nowhere.npy"), "s3://there/nowhere.npy", {"bytes": 1, "sha256": ""})
    return known


def in_place(file: Path, content: bytes) -> None:
    """Write into the same inode."""
    with file.open("r+b") as stream:
        stream.write(content)
        stream.truncate()


def test_what_stays_is_not_read_again(file: Path, in_use: FilesInUse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distgnn.storage.sha256_of", lambda uri: pytest.fail("read"))
    assert in_use.change() == ""
    in_use.refuse_change()


def test_a_change_in_place_a_cut_and_a_loss_are_named(file: Path, in_use: FilesInUse) -> None:
    in_place(file, bytes([1]) + CONTENT[1:])
    os.utime(file, ns=(1, 1))
    assert in_use.change().startswith("s3://there/indices.npy: altered while it was in use")
    in_place(file, CONTENT[:50])
    with pytest.raises(UserError, match=r"indices\.npy: has 50 bytes instead of 200.*--resume"):
        in_use.refuse_change()
    file.unlink()
    assert in_use.change().startswith("s3://there/indices.npy: has gone")


def test_a_touch_and_an_equal_copy_are_as_good(file: Path, in_use: FilesInUse, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(file, ns=(1, 1))
    assert in_use.change() == ""
    copy = file.with_name("copy")
    copy.write_bytes(CONTENT)
    os.replace(copy, file)
    assert in_use.change() == ""
    monkeypatch.setattr("distgnn.storage.sha256_of", lambda uri: pytest.fail("read again"))
    assert in_use.change() == ""
