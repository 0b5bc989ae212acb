"""The file that `distgnn recommend` writes: a row for each recommended item, as Parquet or CSV."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

ENDINGS = (".parquet", ".csv")


class ListFile:
    """Writes lists, chunk by chunk: columns user, rank (from 1), item, score. A context manager.

    Args:
        path: local. ending: one of ENDINGS. user_type, item_type: Arrow types of the keys.
    """

    def __init__(self, path: Path, ending: str, user_type: pa.DataType, item_type: pa.DataType) -> None:
        self._schema = pa.schema({"user": user_type, "rank": pa.int64(), "item": item_type, "score": pa.float64()})
        self.rows = 0
        if ending == ".parquet":
            self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        else:
            self._stream = path.open("wb")
            self._stream.write((",".join(self._schema.names) + "\n").encode())
            options = pa.csv.WriteOptions(include_header=False)
            self._writer = pa.csv.CSVWriter(self._stream, self._schema, write_options=options)
        self._is_csv = ending == ".csv"

    def __enter__(self) -> ListFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        if self._is_csv:
            self._stream.close()

    def write(self, users: pa.Array, items: np.ndarray, scores: np.ndarray, item_keys: pa.Array) -> None:
        """Write the lists of some users.

        Args:
            users: keys `[n]`. items: stable ids int64 `[n, k]`, -1 after a list's end. scores: float `[n, k]`.
            item_keys: of all items, by stable id.
        """
        there = items >= 0
        count = there.sum(axis=1)
        rank = np.broadcast_to(np.arange(1, items.shape[1] + 1), items.shape)[there]
        table = pa.table(
            {
                "user": users.take(pa.array(np.repeat(np.arange(len(users)), count))),
                "rank": rank,
                "item": item_keys.take(pa.array(items[there])),
                "score": scores[there].astype(np.float64),
            },
            schema=self._schema,
        )
        self._writer.write_table(table)
        self.rows += table.num_rows
