"""Files wherever they are (any fsspec URI): atomic writes, checksums, a local cache, and what fits.

A URI is a local path, `file://...`, or `protocol://...`. Local writes go to a temporary name and are renamed. Object
stores show a file only when its upload is complete, so there the upload itself is the atomic step.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem

from distgnn import resources
from distgnn.errors import first_line, is_no_space, space_facts
from distgnn.types import UserError

MANIFEST = "manifest.json"
_CHUNK = 1 << 20
# A store that stays silent is given up after about 2 * 5 * 15 seconds. `FSSPEC_S3` in the environment overrides these.
_S3_CONFIG = {
    "connect_timeout": 10,
    "read_timeout": 15,  # without a byte
    "retries": {"total_max_attempts": 5, "mode": "standard"},  # of a request: refused, 500, 503, no answer
}
_S3_TRIES = 2  # of a request with its retries and the reading of its answer


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a URI and the path in it.

    Raises:
        UserError: an unknown protocol, or one whose package is not installed.
    """
    options = _options(os.fspath(uri))
    try:
        found, path = fsspec.core.url_to_fs(os.fspath(uri), **options)
    except (ValueError, ImportError) as error:
        raise UserError(f"{uri}: cannot be opened: {error}") from error
    if options:
        found.retries = _S3_TRIES
    return found, path


def _options(uri: str) -> dict[str, Any]:
    """Bounds on waiting for a store."""
    protocol = uri.partition("://")[0]
    if protocol not in ("s3", "s3a"):
        return {}
    return {"config_kwargs": {**_S3_CONFIG, **fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})}}


def is_local(uri: str) -> bool:
    """Whether a URI is a path of this machine."""
    text = os.fspath(uri)
    return "://" not in text or text.startswith(("file://", "local://"))


def join(uri: str, *parts: str) -> str:
    """A URI with path components appended."""
    return "/".join([os.fspath(uri).rstrip("/"), *(part.strip("/") for part in parts)])


def local_path(uri: str) -> Path:
    """The absolute path of a local URI."""
    assert is_local(uri)
    return Path(filesystem(uri)[1])


def from_anywhere(uri: str) -> str:
    """The URI in a form that also holds in another working directory."""
    return str(local_path(uri)) if is_local(uri) else os.fspath(uri)


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Turn what reading can raise into one UserError; a remote store's client has exceptions of its own."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{uri}: there is no such file; check the path") from error
    except OSError as error:
        raise UserError(f"{uri}: cannot be read: {first_line(error)}") from error
    except Exception as error:
        if is_local(uri):
            raise
        raise UserError(f"{uri}: cannot be read: {first_line(error)}") from error


@contextmanager
def writing(uri: str, wanted: int | None = None) -> Iterator[None]:
    """Turn what writing can raise (no space left, no permission, a store's refusal) into one UserError.

    `wanted`: bytes to write, where known.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise unwritten(uri, error, local_path(uri) if is_local(uri) else None, wanted) from error
    except Exception as error:
        if is_local(uri):
            raise
        raise UserError(f"{uri}: cannot be written: {first_line(error)}") from error


def unwritten(uri: str, error: OSError, place: Path | None, wanted: int | None = None) -> UserError:
    """`place`: of this machine, where it was to be written first."""
    return UserError(f"{uri}: cannot be written: {first_line(error)}{space_facts(error, place, wanted)}")


def exists(uri: str) -> bool:
    """Whether a file or a folder is there."""
    found, path = filesystem(uri)
    with reading(uri):
        return bool(found.exists(path))


def names_in(uri: str) -> list[str]:
    """Names of the files and folders in a folder, ascending; none where there is no such folder."""
    found, path = filesystem(uri)
    with reading(uri):
        found.invalidate_cache()  # other processes write too
        if not found.isdir(path):
            return []
        return sorted({entry.rstrip("/").rsplit("/", 1)[-1] for entry in found.ls(path, detail=False)})


def remove_file(uri: str) -> None:
    """Remove a file; one that is not there is no mistake."""
    found, path = filesystem(uri)
    with writing(uri), suppress(FileNotFoundError):
        found.rm_file(path)


def read_bytes(uri: str) -> bytes:
    """The content of a file.

    Raises:
        UserError: missing or unreadable.
    """
    found, path = filesystem(uri)
    with reading(uri):
        return bytes(found.cat_file(path))


def read_json(uri: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: missing, unreadable, or no JSON object.
    """
    try:
        content = json.loads(read_bytes(uri))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{uri}: not valid JSON ({error}); it is damaged") from error
    if not isinstance(content, dict):
        raise UserError(f"{uri}: holds no JSON object; it is damaged")
    return content


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file whole or not at all; folders above it are made.

    Raises:
        UserError: no space, no permission, or another refusal.
    """
    with writing(uri, len(content)):
        if is_local(uri):
            _replace(local_path(uri), content)
        else:
            found, path = filesystem(uri)
            found.pipe_file(path, content)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(uri: str, content: dict[str, Any]) -> None:
    """Write a JSON object, indented, as `write_bytes` does."""
    write_bytes(uri, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def sha256_of(uri: str) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    found, path = filesystem(uri)
    digest = hashlib.sha256()
    with reading(uri), found.open(path, "rb") as stream:
        for block in _blocks(uri, stream):
            digest.update(block)
    return digest.hexdigest()


def size_of(uri: str) -> int:
    """Bytes of a file."""
    found, path = filesystem(uri)
    with reading(uri):
        return int(found.size(path))


def cache_dir() -> Path:
    """`$DISTGNN_CACHE`, or `~/.cache/distgnn`."""
    return Path(os.environ.get("DISTGNN_CACHE") or Path.home() / ".cache" / "distgnn")


def local_copy(uri: str, sha256: str | None = None) -> Path:
    """A local file with the content of a URI: itself, or a copy in the cache, downloaded once.

    Copies lie in the cache by their content's hash. Without `sha256` the store's own version mark (size, date, etag)
    says whether the copy is still current.

    Raises:
        UserError: missing, unreadable, or of another hash than `sha256` (remote files; a local one is not read).
    """
    if is_local(uri):
        path = local_path(uri)
        if not path.exists():
            raise UserError(f"{uri}: there is no such file; check the path")
        return path
    note = None
    if sha256 is None:
        note = cache_dir() / "versions" / version_mark(uri)
        sha256 = note.read_text() if note.exists() else None
    name = uri.rsplit("/", 1)[-1]
    if sha256 is not None and (copy := _object(sha256, name)).exists():
        return copy
    copy, actual = _download(uri, name, sha256)
    if note is not None:
        write_bytes(str(note), actual.encode())
    return copy


def checked_copy(uri: str, facts: dict[str, Any], whole: str, remedy: str) -> Path:
    """A local copy of a file that is what a manifest says of it.

    Args:
        uri: of the file. facts: its `bytes` and `sha256`. whole: what it is a part of. remedy: what to do otherwise.

    Raises:
        UserError: missing, truncated or altered.
    """
    if not exists(uri):
        raise UserError(f"{uri}: missing from the {whole}; {remedy}")
    size = size_of(uri)
    if size != facts["bytes"]:
        raise UserError(f"{uri}: has {size} bytes instead of {facts['bytes']}, truncated; {remedy}")
    if is_local(uri) and sha256_of(uri) != facts["sha256"]:
        raise UserError(f"{uri}: altered, its sha256 is not the manifest's; {remedy}")
    copy = local_copy(uri, facts["sha256"])
    if not is_local(uri) and sha256_of(str(copy)) != facts["sha256"]:  # damaged since it was fetched
        copy.unlink()
        copy = local_copy(uri, facts["sha256"])
    return copy


def _object(sha256: str, name: str) -> Path:
    return cache_dir() / "objects" / sha256 / name


def version_mark(uri: str) -> str:
    """A hash that changes when a file does, by what its store says of it (size, date, etag), without reading it."""
    found, path = filesystem(uri)
    with reading(uri):
        found.invalidate_cache()
        mark = found.ukey(path)
    return hashlib.sha256(f"{uri}\n{mark}".encode()).hexdigest()


def _download(uri: str, name: str, expected: str | None) -> tuple[Path, str]:
    """Fetch into the cache, checking size and hash; the copy and its hash."""
    found, path = filesystem(uri)
    with scratch_folder(str(cache_dir() / "objects" / hashlib.sha256(uri.encode()).hexdigest())) as staging:
        partial = staging / name
        with reading(uri), found.open(path, "rb") as source:
            actual = _copy_stream(uri, source, partial)
            size = getattr(source, "size", None)  # None: the store does not say
        if size is not None and partial.stat().st_size != size:
            raise UserError(f"{uri}: cannot be read: only {partial.stat().st_size} of its {size} bytes came")
        if expected is not None and actual != expected:
            raise UserError(f"{uri}: altered or truncated: its sha256 is {actual}, expected {expected}")
        copy = _object(actual, name)
        with writing(str(copy)):
            copy.parent.mkdir(exist_ok=True)
            os.replace(partial, copy)
    return copy, actual


def _copy_stream(uri: str, source: Any, target: Path) -> str:
    """Copy what is open of a URI; the hash of it."""
    digest = hashlib.sha256()
    with writing(str(target)), open(target, "xb") as sink:
        for block in _blocks(uri, source):
            digest.update(block)
            sink.write(block)
    return digest.hexdigest()


def _blocks(uri: str, source: Any) -> Iterator[bytes]:
    """The content of what is open of a URI."""
    while True:
        with reading(uri):
            block = source.read(_CHUNK)
        if not block:
            return
        yield block


@contextmanager
def scratch_folder(uri: str) -> Iterator[Path]:
    """A hidden folder beside a target (in the cache where that is remote), removed in the end.

    What a process that was killed has left of the same target is removed at the start.
    """
    target = local_path(uri) if is_local(uri) else cache_dir() / "uploads" / hashlib.sha256(uri.encode()).hexdigest()
    with writing(uri):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        staging, lock = _make_staging(target)
    try:
        yield staging
    except OSError as error:
        if is_no_space(error):
            what = uri if is_local(uri) else f"{staging.parent} (where {uri} is gathered)"
            raise unwritten(what, error, staging) from error
        raise
    finally:
        os.close(lock)
        shutil.rmtree(staging, ignore_errors=True)


def _make_staging(target: Path) -> tuple[Path, int]:
    """A hidden folder beside the target, and the descriptor whose lock says that its owner is alive."""
    while True:
        staging = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:12]}")
        staging.mkdir()
        lock = os.open(staging, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if staging.exists():  # another publisher may have taken it for abandoned before it was locked
            return staging, lock
        os.close(lock)


def _remove_abandoned(target: Path) -> None:
    for folder in target.parent.glob(f".{target.name}.partial-*"):
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def remove_folder(uri: str, *, keep_root: bool = False) -> None:
    """Remove all in a folder, and the folder itself but for `keep_root`, as far as that is allowed."""
    if not is_local(uri):
        found, remote = filesystem(uri)
        with suppress(Exception):
            found.rm(remote, recursive=True)
        return
    root = local_path(uri)
    for path in [*root.iterdir()] if root.is_dir() else []:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if not keep_root:
        with suppress(OSError):
            root.rmdir()


def require_writable(uri: str, content: bytes) -> None:
    """Refuse early a new file that can't be written; the attempt leaves nothing behind.

    Args:
        content: what a remote store keeps for a moment.

    Raises:
        UserError: below a file, no permission, or a store's refusal.
    """
    with writing(uri):
        if is_local(uri):
            above = next(path for path in local_path(uri).parents if path.exists())
            with tempfile.TemporaryFile(dir=above):
                pass
        else:
            found, path = filesystem(uri)
            found.pipe_file(path, content)
            found.rm_file(path)


def require_free_space(uri: str, nbytes: int, what: str) -> None:
    """Refuse early what a disk can't hold: the target's, or the staging folder's where the target is remote.

    Raises:
        UserError: fewer than `nbytes` bytes are free.
    """
    folder = local_path(uri) if is_local(uri) else cache_dir()
    folder = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise UserError(
            f"{what} needs about {resources.gib(nbytes)} at {folder}, where {resources.gib(free)} are left;"
            f" free some space or write elsewhere"
        )
