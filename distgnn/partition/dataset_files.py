"""Names and writing of a prepared dataset's files. The format is described in docs/ and read by `dataset`.

DATASET/manifest.json                     written last
DATASET/users.parquet items.parquet       stable_id, key, degree, degree_fit, and the columns of the source's table
DATASET/edges/{train,valid,test}.parquet  user, item[, timestamp][, weight]; train holds the fit edges
DATASET/features/{users,items}.npy        where the dataset has features
DATASET/partitions/METHOD-P/              offsets.npy stable_id.npy node_id.npy
DATASET/partitions/METHOD-P/{fit,full}/   user_offsets.npy
                                          part-0000/{indptr,indices[,time,time_fence,time_neighbor,time_place][,weight]}.npy
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distgnn import storage
from distgnn.partition.book import PartitionBook
from distgnn.partition.stable_graph import PartRows
from distgnn.timed_rows import TIMED_ARRAYS

FORMAT = "distgnn-dataset"
FORMAT_VERSION = 1
BOOK_ARRAYS = ("offsets", "stable_id", "node_id")
PHASES = ("fit", "full")
SPLITS = ("train", "valid", "test")


def partitioning_name(method: str, parts: int) -> str:
    """Folder of a partitioning."""
    return f"{method}-{parts}"


def book_file(partitioning: str, array: str) -> str:
    """Path of an array of the partition book."""
    return f"partitions/{partitioning}/{array}.npy"


def user_offsets_file(partitioning: str, phase: str) -> str:
    """Path of a phase's user offsets."""
    return f"partitions/{partitioning}/{phase}/user_offsets.npy"


def part_file(partitioning: str, phase: str, part: int, array: str) -> str:
    """Path of an array of one partition."""
    return f"partitions/{partitioning}/{phase}/part-{part:04d}/{array}.npy"


def edges_file(split: str) -> str:
    """Path of a split's edges."""
    return f"edges/{split}.parquet"


def features_file(role: str) -> str:
    """Path of the features of a role, `user` or `item`."""
    return f"features/{role}s.npy"


def hash_of_json(content: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def content_hash(manifest: dict[str, Any]) -> str:
    """What identifies a dataset with its partitionings; no time, place or library version enters it."""
    arrays = {name: facts["sha256"] for name, facts in manifest["files"].items() if name.endswith(".npy")}
    keys = ["format_version", "name", "counts", "keys", "columns", "config", "partitions", "data_hash"]
    keys += [key for key in ("features",) if key in manifest]
    return hash_of_json([{key: manifest[key] for key in keys}, arrays])


@dataclass(frozen=True)
class FileArray:
    """An array in a file, mapped.

    Attributes:
        values: the array, writable. mapping: of the file.
    """

    values: np.ndarray
    mapping: mmap.mmap

    def forget(self) -> None:
        """Leave the pages touched so far to the page cache: they are no memory of this process any more."""
        self.mapping.madvise(mmap.MADV_DONTNEED)


class DatasetWriter:
    """Writes files into a folder and remembers size and hash of each.

    Args:
        folder: local, existing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: dict[str, dict[str, Any]] = {}

    def _place(self, name: str) -> Path:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def array(self, name: str, array: np.ndarray) -> None:
        """Write a .npy file. (numpy's own writer loses the reason when the disk is full.)"""
        array = np.ascontiguousarray(array)
        header = np.lib.format.header_data_from_array_1_0(array)
        with open(self._place(name), "wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            stream.write(array.reshape(-1).view(np.uint8).data)
        self._note(name)

    @contextmanager
    def new_array(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> Iterator[FileArray]:
        """A .npy file of zeros to fill in place within the block, without holding it in memory."""
        descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with open(self._place(name), "x+b") as stream:
            np.lib.format.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": descr})
            start = stream.tell()
            # A disk that is full says so here; a mapped page that finds no place would kill the process.
            os.posix_fallocate(stream.fileno(), 0, start + size)
            mapping = mmap.mmap(stream.fileno(), start + size)
        yield FileArray(np.frombuffer(mapping, dtype, offset=start).reshape(shape), mapping)
        mapping.flush()
        self._note(name)

    def table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file."""
        pq.write_table(table, self._place(name), compression="zstd")
        self._note(name)

    def copy(self, name: str, source: Path, facts: dict[str, Any]) -> None:
        """Copy a file whose size and hash are known."""
        shutil.copyfile(source, self._place(name))
        self.files[name] = facts

    def _note(self, name: str) -> None:
        path = self._folder / name
        self.files[name] = {"sha256": storage.sha256_of(str(path)), "bytes": path.stat().st_size}

    def book(self, partitioning: str, book: PartitionBook) -> None:
        """Write the partition book."""
        for array in BOOK_ARRAYS:
            self.array(book_file(partitioning, array), getattr(book, array))

    def part(self, partitioning: str, phase: str, part: int, rows: PartRows) -> None:
        """Write the rows of one partition."""
        arrays = {name: getattr(rows, name) for name in ("indptr", "indices", "weight")}
        if rows.times is not None:
            arrays |= {file: getattr(rows.times, name) for name, file in TIMED_ARRAYS.items()}
        for name, array in arrays.items():
            if array is not None:
                self.array(part_file(partitioning, phase, part, name), array)

    def manifest(self, content: dict[str, Any]) -> None:
        """Write the manifest: the dataset is then readable."""
        files = dict(sorted(self.files.items()))
        full = {"format": FORMAT, "format_version": FORMAT_VERSION, **content, "files": files}
        full["content_hash"] = content_hash(full)
        storage.write_json(str(self._folder / storage.MANIFEST), full)
