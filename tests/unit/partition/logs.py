"""Small logs to prepare from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distgnn.config import Config
from distgnn.config_reading import config_from_dict

Row = tuple[Any, Any, int, float]


def random_log(seed: int, n_users: int = 14, n_items: int = 9, n_rows: int = 160, text: bool = False) -> list[Row]:
    """Rows (user, item, timestamp, weight) with repeated edges."""
    rng = np.random.default_rng(seed)
    name = (lambda kind, k: f"{kind}{k}") if text else (lambda _, k: 10 * k + 3)
    return [
        (name("u", int(u)), name("i", int(i)), int(t), float(w) / 4)
        for u, i, t, w in zip(
            rng.integers(0, n_users, n_rows),
            rng.integers(0, n_items, n_rows),
            rng.integers(0, 1000, n_rows),
            rng.integers(1, 9, n_rows),
            strict=True,
        )
    ]


def write_log(path: Path, rows: list[Row]) -> str:
    """Write rows as Parquet or CSV, by the path's extension."""
    names = ("user", "item", "timestamp", "weight")
    if path.suffix == ".csv":
        path.write_text("\n".join([",".join(names), *(",".join(map(str, row)) for row in rows)]) + "\n")
    else:
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path)
    return str(path)


def config(**sections: dict[str, Any]) -> Config:
    """A configuration of some sections."""
    return config_from_dict(sections)
