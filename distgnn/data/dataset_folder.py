"""A dataset as a folder: `{train,valid,test,items,users,...}.parquet` beside `dataset.json`.

`dataset.json` has name, n_users, n_items, n_train, n_test[, n_valid], source, split, and under `files` the sha256,
bytes and rows of every file. Edges hold `user` and `item` (int32) and, where known, `timestamp` (int64) and `rating`;
`items` and `users` say what a number stands for. This is how `DISTGNN_DATA/<name>`, the bundled datasets and the
downloaded ones look.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distgnn import storage
from distgnn.types import UserError

CARD = "dataset.json"


def write_dataset_folder(folder: Path, tables: dict[str, pa.Table], card: dict[str, Any]) -> dict[str, Any]:
    """Write tables as `<key>.parquet` and then `dataset.json`; the same tables give the same bytes.

    (The bytes of a Parquet file also hold the version of pyarrow that wrote it.)

    Args:
        folder: an existing local folder.
        tables: file stem to table.
        card: the content of dataset.json but for `files`.

    Returns:
        The card with `files`.
    """
    files = {}
    for stem, table in sorted(tables.items()):
        path = folder / f"{stem}.parquet"
        pq.write_table(table, path, compression="zstd", compression_level=19, store_schema=False)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        files[path.name] = {"sha256": digest, "bytes": path.stat().st_size, "rows": table.num_rows}
    full = {**card, "files": files}
    (folder / CARD).write_text(json.dumps(full, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return full


def read_card(folder: str) -> dict[str, Any]:
    """The content of a folder's dataset.json.

    Raises:
        UserError: not readable as a JSON object, or without the list of files.
    """
    uri = storage.join(folder, CARD)
    try:
        card = json.loads(storage.read_bytes(uri))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{uri}: not valid JSON: {error}") from error
    if not isinstance(card, dict) or not isinstance(card.get("files", {}), dict):
        raise UserError(f"{uri}: must be a JSON object with the counts, and under `files` each file's sha256 and bytes")
    for file, facts in card.get("files", {}).items():
        if not isinstance(facts, dict):
            raise UserError(f"{uri}: files[{file!r}] must be an object with sha256 and bytes")
    return card


def has_card(folder: str) -> bool:
    """Whether the folder is a dataset."""
    return storage.exists(storage.join(folder, CARD))


def table_uri(folder: str, card: dict[str, Any], stem: str) -> str | None:
    """The URI of `<stem>.parquet` where the dataset has it."""
    file = f"{stem}.parquet"
    uri = storage.join(folder, file)
    return uri if file in card.get("files", {}) or storage.exists(uri) else None


def check_sizes(folder: str, card: dict[str, Any]) -> None:
    """Every file of the card is there and as long as the card says.

    Raises:
        UserError: naming the first file that is missing or of another size.
    """
    for file, facts in card.get("files", {}).items():
        uri = storage.join(folder, file)
        if not storage.exists(uri):
            raise UserError(f"{uri}: missing, though {CARD} lists it; fetch the dataset again")
        size = storage.size_of(uri)
        if "bytes" in facts and size != facts["bytes"]:
            raise UserError(
                f"{uri}: has {size} bytes, {CARD} says {facts['bytes']}: truncated or altered; fetch it again"
            )


def check_hashes(folder: str, card: dict[str, Any], uris: list[str]) -> None:
    """The named files have the sha256 that the card says.

    Raises:
        UserError: naming the first file that was altered.
    """
    for uri in uris:
        expected = card.get("files", {}).get(uri.rsplit("/", 1)[-1], {}).get("sha256")
        if expected and storage.sha256_of(uri) != expected:
            raise UserError(f"{uri}: its sha256 is not the one of {CARD}: altered; fetch it again")
