"""Small datasets, and exports of random vectors on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from distgnn.config import config_from_dict
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
