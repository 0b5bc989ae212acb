"""Small datasets, and exports of random vectors on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distgnn.config_reading import config_from_dict
from distgnn.export.reader import Export, read_export
from distgnn.export.table import Table, quantize_rows
from distgnn.export.writer import write_export
from distgnn.partition.dataset import PreparedDataset
from distgnn.partition.prepare import prepare


def small_dataset(
    folder: Path, *, text: bool = False, n_users: int = 40, n_items: int = 25, parts: int = 2, seed: int = 0
) -> PreparedDataset:
    """A prepared log of random interactions; integer keys are ten times something, text keys u<n> and i<n>."""
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((n_users, n_items)) < 0.35)
    name = (lambda kind, n: f"{kind}{n}") if text else (lambda _, n: str(10 * n))
    lines = ["user,item", *(f"{name('u', u)},{name('i', i)}" for u, i in zip(user, item, strict=True))]
    log = folder / "log.csv"
    log.write_text("\n".join(lines) + "\n")
    sections: dict[str, dict[str, Any]] = {
        "data": {"input": str(log), "name": "small"},
        "partition": {"parts": parts, "method": "random"},
        "run": {"out": str(folder / "dataset")},
    }
    return prepare(config_from_dict(sections), log=lambda _: None)


def random_tables(dataset: PreparedDataset, dtype: str, dim: int = 6, seed: int = 1) -> tuple[Table, Table]:
    """User and item vectors of a dtype."""
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=(n, dim)) for n in (dataset.n_users, dataset.n_items)]
    if dtype == "int8":
        return quantize_rows(rows[0]), quantize_rows(rows[1])
    return Table(rows[0].astype(dtype)), Table(rows[1].astype(dtype))


def small_export(
    folder: Path, dtype: str = "float32", *, text: bool = False, dim: int = 6, phase: str = "full", **sizes: int
) -> Export:
    """An export of random vectors, written to folder/run/embeddings and read back."""
    dataset = small_dataset(folder, text=text, **sizes)
    users, items = random_tables(dataset, dtype, dim)
    uri = str(folder / "run" / "embeddings")
    write_export(uri, model="random", dataset=dataset, phase=phase, users=users, items=items)
    return read_export(uri)


def export_with_ties(dtype: str = "float32", *, text: bool = False, n_users: int = 12, n_items: int = 40) -> Export:
    """An export in memory whose scores are small whole numbers, so that they are exact and many are equal.

    Integer keys are ten times the stable id, text keys are given in no order. User 0 has seen nothing, user 1 all but
    three items.
    """
    rng = np.random.default_rng(5)
    values = [rng.integers(-2, 3, (n, 3)) for n in (n_users, n_items)]
    values[1][9] = 0
    scales = [np.full(n, 0.5, np.float16) for n in (n_users, n_items)]
    tables = [Table(v.astype(dtype), s if dtype == "int8" else None) for v, s in zip(values, scales, strict=True)]
    keys = [
        pa.array([f"{kind}{(7 * n) % count}" for n in range(count)], pa.large_string())
        if text
        else pa.array(np.arange(count) * 10)
        for kind, count in (("u", n_users), ("i", n_items))
    ]
    seen = [np.flatnonzero(rng.random(n_items) < 0.3) for _ in range(n_users)]
    seen[0], seen[1] = seen[0][:0], np.arange(3, n_items)
    return Export(
        uri="memory",
        manifest={"model": "ties", "dataset": "ties", "dtype": dtype, "dim": 3},
        users=tables[0],
        items=tables[1],
        user_keys=keys[0],
        item_keys=keys[1],
        seen_indptr=np.concatenate([[0], np.cumsum([len(s) for s in seen])]),
        seen_items=np.concatenate(seen).astype(np.int32),
        item_degree=rng.integers(0, 5, n_items),
        fold_in=np.roll(np.eye(3, dtype=np.float32), 1, axis=0),
    )
