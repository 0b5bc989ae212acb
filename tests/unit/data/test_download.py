from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from distgnn.data import download as module
from distgnn.data.download import ProgressLine, download
from distgnn.types import UserError
from tests.unit.data.http_server import Site

BODY = bytes(range(256)) * 4000
MD5 = "md5:" + hashlib.md5(BODY, usedforsecurity=False).hexdigest()
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def target(site: Site, tmp_path: Path) -> Path:
    site.files["file.bin"] = BODY
    return tmp_path / "new" / "file.bin"


def fetch(site: Site, target: Path, **options: Any) -> str:
    return download(site.url("file.bin"), target, **{"pause": 0.0, "timeout": 5.0, **options})


def refused(site: Site, target: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        fetch(site, target, **options)
    return str(caught.value)


def leftovers(target: Path) -> list[str]:
    """Files beside the target but for its record and lock."""
    return sorted(p.name for p in target.parent.iterdir() if p.suffix not in (".sha256", ".lock") and p != target)


@pytest.mark.parametrize("checksum", [MD5, f"sha256:{SHA256}", ""])
def test_file_arrives_whole_with_progress(site: Site, target: Path, checksum: str) -> None:
    seen: list[tuple[int, int | None]] = []
    assert fetch(site, target, checksum=checksum, progress=lambda done, total: seen.append((done, total))) == SHA256
    assert target.read_bytes() == BODY
    assert leftovers(target) == []
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))
    assert seen == sorted(seen)


def test_second_call_does_not_ask_again(site: Site, target: Path) -> None:
    fetch(site, target)
    fetch(site, target, checksum=MD5)
    assert len(site.requests) == 1


def test_dropped_connections_are_resumed_where_they_broke(site: Site, target: Path) -> None:
    site.drop_after = [300_000, 0, 200_000]
    fetch(site, target, checksum=MD5)
    assert target.read_bytes() == BODY
    assert [asked for _, asked in site.requests] == [None, "bytes=300000-", "bytes=300000-", "bytes=500000-"]


def test_interrupted_download_goes_on_in_a_later_call(site: Site, target: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        if done > 400_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(site, target, progress=interrupt)
    kept = (target.parent / "file.bin.part").stat().st_size
    assert 400_000 < kept < len(BODY)
    assert not target.exists()
    fetch(site, target, checksum=MD5)
    assert site.requests[-1][1] == f"bytes={kept}-"
    assert target.read_bytes() == BODY
    assert leftovers(target) == []


def test_another_version_on_the_server_starts_afresh(site: Site, target: Path) -> None:
    site.drop_after = [300_000, 0, 0]
    assert "connections in a row brought nothing" in refused(site, target, attempts=2)
    newer = BODY[::-1]
    site.files["file.bin"], site.etag = newer, '"v2"'
    site.drop_after = []
    fetch(site, target)
    assert target.read_bytes() == newer


@pytest.mark.parametrize("etag", ["", 'W/"v1"'])
def test_without_a_strong_validator_nothing_is_resumed(site: Site, target: Path, etag: str) -> None:
    site.etag = etag
    site.drop_after = [300_000]
    fetch(site, target, checksum=MD5)
    assert [asked for _, asked in site.requests] == [None, None]


def test_a_date_is_a_validator_too(site: Site, target: Path) -> None:
    site.etag, site.last_modified = 'W/"v1"', "Mon, 06 Jan 2020 00:00:00 GMT"
    site.drop_after = [300_000]
    fetch(site, target, checksum=MD5)
    assert [asked for _, asked in site.requests] == [None, "bytes=300000-"]


def test_server_without_ranges_sends_everything_again(site: Site, target: Path) -> None:
    site.ranges = False
    site.drop_after = [300_000]
    fetch(site, target, checksum=MD5)
    assert target.read_bytes() == BODY
    assert len(site.requests) == 2


def test_part_of_another_url_is_not_continued(site: Site, target: Path) -> None:
    site.files["other.bin"] = b"x" * 500_000
    site.drop_after = [200_000, 0, 0]
    with pytest.raises(UserError):
        download(site.url("other.bin"), target, pause=0.0, attempts=2)
    fetch(site, target, checksum=MD5)
    assert site.requests[-1] == ("/file.bin", None)


def test_part_longer_than_the_file_is_dropped(site: Site, target: Path) -> None:
    site.drop_after = [300_000, 0, 0]
    refused(site, target, attempts=2)
    with open(target.parent / "file.bin.part", "ab") as stream:
        stream.write(b"y" * len(BODY))
    fetch(site, target, checksum=MD5)
    assert target.read_bytes() == BODY


def test_range_that_starts_elsewhere_is_never_appended(site: Site, target: Path) -> None:
    site.drop_after = [300_000]
    site.wrong_range = True
    assert "asked for bytes from 300000 on" in refused(site, target, attempts=3)
    assert not target.exists()


def test_file_of_unknown_length(site: Site, target: Path) -> None:
    site.send_length = False
    seen: list[int | None] = []
    fetch(site, target, checksum=MD5, progress=lambda done, total: seen.append(total))
    assert target.read_bytes() == BODY
    assert set(seen) == {None}


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_altered_content_is_refused_and_removed(site: Site, target: Path, algorithm: str) -> None:
    checksum = MD5 if algorithm == "md5" else f"sha256:{SHA256}"
    site.files["file.bin"] = BODY[:-1] + b"!"
    text = refused(site, target, checksum=checksum)
    assert text.startswith(f"{site.url('file.bin')}: {algorithm} is ")
    assert checksum.split(":")[1] in text
    assert not target.exists()
    assert leftovers(target) == []
    site.files["file.bin"] = BODY
    fetch(site, target, checksum=checksum)


def test_first_download_is_trusted_and_later_ones_must_be_the_same(site: Site, target: Path) -> None:
    fetch(site, target)
    assert (target.parent / "file.bin.sha256").read_text().strip() == SHA256
    target.unlink()
    site.files["file.bin"] = BODY + b"more"
    assert "of the first download" in refused(site, target)
    assert not target.exists()
    (target.parent / "file.bin.sha256").unlink()
    fetch(site, target)
    assert target.read_bytes() == BODY + b"more"


def test_file_altered_on_disk_is_refused(site: Site, target: Path) -> None:
    fetch(site, target)
    target.write_bytes(BODY[:-1] + b"!")
    assert "sha256 is" in refused(site, target)
    fetch(site, target)
    assert target.read_bytes() == BODY


def test_missing_page_is_one_line_and_not_retried(site: Site, target: Path) -> None:
    site.files.clear()
    text = refused(site, target)
    assert text == f"cannot download {site.url('file.bin')}: HTTP 404 Not Found"
    assert len(site.requests) == 1
    assert leftovers(target) == []


def test_busy_server_is_asked_again(site: Site, target: Path) -> None:
    site.errors = [503, 429, 500]
    fetch(site, target, checksum=MD5)
    assert len(site.requests) == 4


def test_no_network_is_one_line_at_once(tmp_path: Path) -> None:
    with socket.socket() as unused:  # bound and not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file.bin"
        with pytest.raises(UserError, match="no connection") as caught:
            download(url, tmp_path / "file.bin", pause=60.0)
    assert "\n" not in str(caught.value)
    assert url in str(caught.value)


def test_silent_server_times_out(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file.bin"
        with pytest.raises(UserError, match="2 connections in a row brought nothing|no connection"):
            download(url, tmp_path / "file.bin", timeout=0.1, attempts=2, pause=0.0)


def test_full_disk_is_said(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "_fetch_once", full)
    assert refused(site, target).startswith(f"{target}: no space left for the download")
    assert not target.exists()


def test_two_callers_fetch_once(site: Site, target: Path) -> None:
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(fetch(site, target))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [SHA256] * 4
    assert len(site.requests) == 1


def test_progress_line_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine("file.zip")
    for done in range(0, (10 << 20) + 1, 1 << 18):
        line(done, 10 << 20)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "file.zip: 10.0 of 10.0 MiB (100%)"
