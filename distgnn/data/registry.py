"""Datasets by name: under `DISTGNN_DATA`, in the package, in the cache, or to download."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from distgnn import publishing, storage
from distgnn.data.catalogue import DOWNLOADABLE, Downloadable
from distgnn.data.dataset_folder import check_hashes, check_sizes, has_card, read_card, table_uri, write_dataset_folder
from distgnn.data.download import ProgressLine, download, exclusive
from distgnn.data.log_files import reading
from distgnn.types import UserError

BUNDLED = Path(__file__).parent / "bundled"
ENVIRONMENT = "DISTGNN_DATA"


@dataclass(frozen=True)
class RawDataset:
    """A dataset as published: its files and what is known of them.

    Attributes:
        name: registry name.
        train, valid, test, items, users: URIs of Parquet files, None where the dataset has none.
        valid_is_subset_of_train: whether the validation edges also stand in `train`.
        columns: names of the user, item and timestamp (or "") columns of the edges.
        card: the content of dataset.json.
    """

    name: str
    train: str
    valid: str | None
    test: str | None
    items: str | None
    users: str | None
    valid_is_subset_of_train: bool
    columns: dict[str, str]
    card: dict[str, Any]


@dataclass(frozen=True)
class DatasetEntry:
    """A line of `distgnn datasets`; counts are None where dataset.json leaves them out.

    `state` is `bundled`, `found in <folder>`, `cached` or `downloadable`; for a folder that can't be used it says why.
    """

    name: str
    n_users: int | None
    n_items: int | None
    n_train: int | None
    n_valid: int | None
    n_test: int | None
    state: str
    source: str


def find_dataset(name: str) -> RawDataset:
    """The files of a dataset, downloaded first if need be, each as long and with the sha256 that dataset.json says.

    Looked for under `DISTGNN_DATA`, in the package, in the cache, then fetched.

    Raises:
        UserError: an unknown name (with the nearest ones), a missing or altered file, a failed download.
    """
    folder = _find_folder(name)
    if folder is None:
        if name not in DOWNLOADABLE:
            raise _unknown(name)
        folder = _fetch(DOWNLOADABLE[name])
    return _open(name, folder)


def list_datasets() -> list[DatasetEntry]:
    """Every known dataset: the bundled ones, the catalogue, then other folders under `DISTGNN_DATA`; reads no edges."""
    bundled = sorted(path.name for path in BUNDLED.iterdir() if (path / "dataset.json").exists())
    names = list(dict.fromkeys([*bundled, *DOWNLOADABLE, *_own_names()]))
    return [_entry(name) for name in names]


def format_datasets(entries: list[DatasetEntry]) -> str:
    """A table of datasets for the terminal."""
    head = ("name", "users", "items", "train", "valid", "test", "state", "source")
    rows = [
        (e.name, *(_count(n) for n in (e.n_users, e.n_items, e.n_train, e.n_valid, e.n_test)), e.state, e.source)
        for e in entries
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [c.rjust(w) if 1 <= i <= 5 else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    if not os.environ.get(ENVIRONMENT):
        lines += ["", f"{ENVIRONMENT} may name a folder with copies of your own: <name>/dataset.json and Parquet files"]
    return "\n".join(lines)


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _data_root() -> str | None:
    """The folder of `DISTGNN_DATA`, if set."""
    root = os.environ.get(ENVIRONMENT, "")
    if not root:
        return None
    filesystem, path = storage.filesystem(root)
    with reading(root):
        if not filesystem.isdir(path):
            raise UserError(f"{ENVIRONMENT}={root}: no such folder; set it to your datasets' folder or unset it")
    return root


def _own_names() -> list[str]:
    root = _data_root()
    if root is None:
        return []
    filesystem, path = storage.filesystem(root)
    with reading(root):
        names = sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=False))
    return [name for name in names if has_card(storage.join(root, name))]


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) is not None


def _cached(name: str) -> Path:
    return storage.cache_dir() / "datasets" / name


def _find_folder(name: str) -> str | None:
    """Where a dataset is, or None."""
    if not _is_name(name):
        return None
    root = _data_root()
    candidates = [storage.join(root, name)] if root is not None else []
    candidates += [str(BUNDLED / name), str(_cached(name))]
    return next((folder for folder in candidates if has_card(folder)), None)


def _unknown(name: str) -> UserError:
    known = [entry.name for entry in list_datasets()]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}"
    return UserError(f"unknown dataset {name!r}; {hint} (a log of your own goes into data.input)")


def _open(name: str, folder: str) -> RawDataset:
    card = read_card(folder)
    check_sizes(folder, card)
    tables = {stem: table_uri(folder, card, stem) for stem in ("train", "valid", "test", "items", "users")}
    train = tables["train"]
    if train is None:
        raise UserError(f"{folder}: no train.parquet; a dataset needs one beside its dataset.json")
    check_hashes(folder, card, [uri for uri in tables.values() if uri is not None])
    filesystem, path = storage.filesystem(train)
    with reading(train), filesystem.open(path, "rb") as stream:
        there = pq.read_schema(stream).names
    return RawDataset(
        name=name,
        train=train,
        valid=tables["valid"],
        test=tables["test"],
        items=tables["items"],
        users=tables["users"],
        valid_is_subset_of_train=bool(card.get("valid_is_subset_of_train", False)),
        columns={"user": "user", "item": "item", "timestamp": "timestamp" if "timestamp" in there else ""},
        card=card,
    )


def _entry(name: str) -> DatasetEntry:
    folder = _find_folder(name)
    if folder is None:
        spec = DOWNLOADABLE[name]
        counts = (spec.n_users, spec.n_items, spec.n_train, None, spec.n_test)
        return DatasetEntry(name, *counts, "downloadable", spec.homepage)
    if folder == str(BUNDLED / name):
        state = "bundled"
    elif folder == str(_cached(name)):
        state = "cached"
    else:
        state = f"found in {folder}"
    try:
        card = read_card(folder)
        check_sizes(folder, card)
    except UserError as error:
        return DatasetEntry(name, None, None, None, None, None, f"unusable: {error}", folder)
    n_users, n_items, n_train, n_valid, n_test = (
        card.get(key) for key in ("n_users", "n_items", "n_train", "n_valid", "n_test")
    )
    return DatasetEntry(name, n_users, n_items, n_train, n_valid, n_test, state, _source(name, card))


def _source(name: str, card: dict[str, Any]) -> str:
    if name in DOWNLOADABLE:
        return DOWNLOADABLE[name].homepage
    sources = card.get("source")
    first = sources[0] if isinstance(sources, list) and sources else sources
    if isinstance(first, dict):
        return str(first.get("url") or first.get("repo") or "-")
    return str(first or "-")


def _fetch(spec: Downloadable) -> str:
    """Download, convert, check the counts and publish in the cache; the folder."""
    raw = storage.cache_dir() / "downloads" / spec.name
    with exclusive(raw):
        if not has_card(str(_cached(spec.name))):  # another process may have published it meanwhile
            _publish(spec, raw)
    return str(_cached(spec.name))


def _publish(spec: Downloadable, raw: Path) -> None:
    sources = []
    for file in spec.files:
        try:
            sha256 = download(file.url, raw / file.name, checksum=file.checksum, progress=ProgressLine(file.name))
        except UserError as error:
            raise UserError(
                f"dataset {spec.name}: {error}. A copy in {ENVIRONMENT}/{spec.name} would be used instead;"
                f" debian-deps needs no network"
            ) from error
        sources.append({"url": file.url, "sha256": sha256})
    converted = spec.convert(raw)
    n_train, n_test = converted.tables["train"].num_rows, converted.tables["test"].num_rows
    counts = {"n_users": converted.n_users, "n_items": converted.n_items, "n_train": n_train, "n_test": n_test}
    for key, found in counts.items():
        if found != getattr(spec, key):
            raise UserError(
                f"dataset {spec.name}: {key} of the download is {found}, but {getattr(spec, key)} is published:"
                f" not the same data; remove {raw} to fetch it again"
            )
    card = {
        "name": spec.name,
        **counts,
        "source": sources,
        "homepage": spec.homepage,
        "licence": spec.licence,
        "split": converted.split,
    }
    with publishing.publish_directory(str(_cached(spec.name))) as staging:
        write_dataset_folder(staging, converted.tables, card)
