"""Files over HTTP: progress, resume of a part, checksum, atomic appearance."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distgnn.types import UserError

Progress = Callable[[int, int | None], None]
_CHUNK = 1 << 18
_MIB = 1 << 20


class ProgressLine:
    """Bytes so far on stderr: one line rewritten on a terminal, a line every tenth of the file elsewhere."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last_time = 0.0
        self._last_tenth = -1

    def __call__(self, done: int, total: int | None) -> None:
        finished = done == total
        if sys.stderr.isatty():
            if not finished and time.monotonic() - self._last_time < 0.2:
                return
            self._last_time = time.monotonic()
            print(f"\r{self._text(done, total)}", end="\n" if finished else "", file=sys.stderr, flush=True)
        elif total and done * 10 // total > self._last_tenth:
            self._last_tenth = done * 10 // total
            print(self._text(done, total), file=sys.stderr, flush=True)

    def _text(self, done: int, total: int | None) -> str:
        if not total:
            return f"{self._name}: {done / _MIB:.1f} MiB"
        return f"{self._name}: {done / _MIB:.1f} of {total / _MIB:.1f} MiB ({done / total:4.0%})"


class _Dropped(Exception):
    """The connection ended before the file did."""


def download(
    url: str,
    target: Path,
    *,
    checksum: str = "",
    progress: Progress | None = None,
    timeout: float = 30.0,
    attempts: int = 5,
    pause: float = 1.0,
) -> str:
    """Fetch `url` to `target`, once.

    What came in is kept as `<target>.part`; a later call, or a retry after a dropped connection, goes on from there if
    the server still has the same version (its strong ETag or date). The file appears under its name only when it is
    complete and its checksum is right. Without a published checksum the first download's sha256 is kept as
    `<target>.sha256`, and every later one must have it too.

    Args:
        url: http or https.
        target: local path; its folder is made.
        checksum: `md5:<hex>` or `sha256:<hex>` as published; empty where none is.
        progress: called with bytes so far and in total (None where the server doesn't say).
        timeout: seconds without a byte until the connection counts as dropped.
        attempts: connections in a row that may bring nothing new before it gives up.
        pause: seconds before the second attempt, doubled for each further one.

    Returns:
        The file's sha256, hexadecimal.

    Raises:
        UserError: no network, an HTTP error, another checksum, no space left.
    """
    try:
        with exclusive(target):
            if target.exists():
                return _verify(target, url, target, checksum)
            part = target.with_name(target.name + ".part")
            _fetch(url, part, progress, timeout, attempts, pause)
            digest = _verify(part, url, target, checksum)
            _write_text(_record(target), digest + "\n")
            os.replace(part, target)
            _state_file(part).unlink(missing_ok=True)
            return digest
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"{target}: no space left for the download; free some, or set DISTGNN_CACHE") from error
        raise UserError(f"{target}: cannot write the download: {error}") from error


def _record(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """One process at a time makes `target`; the others wait and find it there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(target.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _verify(path: Path, url: str, target: Path, checksum: str) -> str:
    """The sha256 of `path`; a file that is not what was published, or recorded at first, is removed and refused."""
    sha256 = _digest(path, "sha256")
    record = _record(target)
    if checksum:
        algorithm, _, expected = checksum.partition(":")
        found = sha256 if algorithm == "sha256" else _digest(path, algorithm)
        origin = "published"
    else:
        algorithm, found, origin = "sha256", sha256, f"of the first download (in {record})"
        expected = record.read_text(encoding="utf-8").strip() if record.exists() else found
    if found != expected:
        path.unlink()
        _state_file(path).unlink(missing_ok=True)
        advice = "" if checksum else "; if the publisher replaced it, remove that record"
        raise UserError(f"{url}: {algorithm} is {found}, but {expected} is the one {origin}; removed it{advice}")
    return sha256


def _fetch(url: str, part: Path, progress: Progress | None, timeout: float, attempts: int, pause: float) -> None:
    """Bring `part` to the whole file, over as many connections as it takes."""
    idle = 0  # connections in a row without a new byte
    received_any = False
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch_once(url, part, progress, timeout)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise UserError(f"cannot download {url}: HTTP {error.code} {error.reason}") from error
            failure: Exception = error
        except urllib.error.URLError as error:
            if not received_any:
                raise UserError(f"cannot download {url}: no connection ({error.reason})") from error
            failure = error
        except (_Dropped, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            failure = error
        grown = part.exists() and part.stat().st_size > before
        received_any = received_any or grown
        idle = 0 if grown else idle + 1
        if idle >= attempts:
            raise UserError(
                f"cannot download {url}: {attempts} connections in a row brought nothing ({failure});"
                f" what came in so far is kept, try again later"
            ) from failure
        time.sleep(pause * 2 ** max(idle - 1, 0))


def _fetch_once(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    """One connection: go on from the end of `part` where the server has the same version, else from the start."""
    offset, validator = _resume_point(part, url)
    request = urllib.request.Request(url, headers={"User-Agent": "distgnn"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        request.add_header("If-Range", validator)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # The part is no beginning of what the server has: start afresh.
        part.unlink()
        raise _Dropped("the part on disk did not fit") from error
    with response:
        start, total = _extent(response, offset)
        _write_text(_state_file(part), json.dumps({"url": url, "validator": _validator(response)}))
        with open(part, "r+b" if start else "wb") as stream:
            stream.seek(start)
            done = start
            if progress:
                progress(done, total)
            while block := response.read(_CHUNK):
                stream.write(block)
                done += len(block)
                if progress:
                    progress(done, total)
    if total is not None and done != total:
        raise _Dropped(f"connection dropped after {done} of {total} bytes")


def _resume_point(part: Path, url: str) -> tuple[int, str]:
    """Bytes that a part has, and the version they are of; `(0, "")` where it can't be continued."""
    try:
        state = json.loads(_state_file(part).read_text(encoding="utf-8"))
        size = part.stat().st_size
    except (OSError, ValueError):
        return 0, ""
    if state.get("url") != url or not state.get("validator"):
        return 0, ""
    return size, state["validator"]


def _validator(response: Any) -> str:
    """What tells one version of the file from another; weak ETags can't (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _extent(response: Any, offset: int) -> tuple[int, int | None]:
    """Where the body starts in the file, and the file's length."""
    length = response.headers.get("Content-Length")
    if response.status != 206:
        return 0, int(length) if length else None
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    span, _, whole = rest.partition("/")
    start = span.split("-")[0]
    if unit != "bytes" or start != str(offset):
        raise _Dropped(f"asked for bytes from {offset} on, got {rest!r}")
    return offset, int(whole) if whole.isdigit() else None
