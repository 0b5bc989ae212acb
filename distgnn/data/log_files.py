"""Which files a log consists of, their formats, and reading failures put into words."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from fsspec import AbstractFileSystem

from distgnn import storage
from distgnn.errors import first_line, read_failure
from distgnn.types import UserError

FORMATS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet", ".txt": "lightgcn"}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


@dataclass(frozen=True)
class LogFile:
    """One file of a log.

    Attributes:
        filesystem, path: where it is.
        name: how messages call it (a plain path, or a URI).
        format: csv, parquet or lightgcn.
        compression: gzip, bz2, zstd, or None.
    """

    filesystem: AbstractFileSystem
    path: str
    name: str
    format: str
    compression: str | None

    @property
    def is_tab_separated(self) -> bool:
        """Whether the name says so (`.tsv`, `.tsv.gz`)."""
        return ".tsv" in PurePosixPath(self.path.lower()).suffixes[-2:]

    def size(self) -> int:
        """Bytes as stored."""
        return storage.size_of(self.name)

    def open_raw(self) -> Any:
        """The stored bytes."""
        return self.filesystem.open(self.path, "rb")

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The content, decompressed: a readable Arrow stream."""
        with self.open_raw() as raw:
            if self.compression is None:
                yield pa.PythonFile(raw, mode="r")
            else:
                with pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), self.compression) as stream:
                    yield stream


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever reading a file can raise into one UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{name}: there is no such file; check the path") from error
    except PermissionError as error:
        raise UserError(f"{name}: no permission to read it") from error
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        what = "cannot be read, it is damaged or not what its name says"
        raise read_failure(name, error, f"{what}: {first_line(error)}") from error
    except Exception as error:  # a remote store's client has exceptions of its own
        if storage.is_local(name):
            raise
        raise UserError(f"{name}: cannot be read: {first_line(error)}") from error


def _suffixes(path: str) -> tuple[str, str | None]:
    """Extension without compression, and the compression, of a path."""
    name = PurePosixPath(path.lower())
    compression = COMPRESSIONS.get(name.suffix)
    if compression:
        name = name.with_suffix("")
    return name.suffix, compression


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(("_", ".")) for part in PurePosixPath(relative).parts)


def _paths(filesystem: AbstractFileSystem, path: str, uri: str) -> list[str]:
    """The files behind a path, a folder or a glob, sorted; hidden ones (`_SUCCESS`, `.crc`) left out."""
    with reading(uri):
        if filesystem.isfile(path):
            return [path]
        if filesystem.isdir(path):
            root = path.rstrip("/") + "/"
            return sorted(p for p in filesystem.find(path) if not _is_hidden(p[len(root) :]))
        if any(sign in path for sign in "*?["):
            return sorted(p for p in filesystem.glob(path) if filesystem.isfile(p))
    raise UserError(f"{uri}: there is no such file, folder or pattern; check the path")


def find_log_files(uri: str, format: str = "auto") -> list[LogFile]:
    """The files of a log, in a fixed order.

    Args:
        uri: a file, a folder (read recursively) or a glob, local or any fsspec URI.
        format: `auto` (by extension; other files of a folder are left out), csv, parquet or lightgcn.

    Raises:
        UserError: nothing there, no file of a known format, or several formats in one folder.
    """
    if format not in ("auto", *FORMATS.values()):
        raise UserError(f"data.format = {format!r} is not one of auto, csv, parquet, lightgcn")
    filesystem, path = storage.filesystem(uri)
    paths = _paths(filesystem, path, uri)
    files = []
    for found in paths:
        extension, compression = _suffixes(found)
        kind = FORMATS.get(extension, "") if format == "auto" else format
        if kind:
            name = found if storage.is_local(uri) else filesystem.unstrip_protocol(found)
            files.append(LogFile(filesystem, found, name, kind, compression))
    if not files:
        raise UserError(
            f"{uri}: no file with a known extension ({', '.join(FORMATS)}, also compressed);"
            f" set data.format to csv, parquet or lightgcn"
        )
    kinds = sorted({file.format for file in files})
    if len(kinds) > 1:
        raise UserError(f"{uri}: holds files of several formats ({', '.join(kinds)}); name one by a pattern as *.csv")
    return files
