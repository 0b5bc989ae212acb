"""Output vectors of a trained model as Parquet: one row a node, with its original key."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distgnn import storage
from distgnn.partition.dataset import PreparedDataset
from distgnn.training.trainer import PhaseTrainer
from distgnn.types import USER

_CHUNK = 1 << 18


def write_embeddings(run: str, trainer: PhaseTrainer, dataset: PreparedDataset) -> None:
    """Write RUN/embeddings/{users,items}.parquet (`stable_id`, `key`, `vector`), gathered in chunks; a collective."""
    vectors = trainer.vectors().cpu().numpy()
    own, group = trainer.own, trainer.group
    for name, keys, wanted in (
        ("users", dataset.user_keys, own.node_type == USER),
        ("items", dataset.item_keys, own.node_type != USER),
    ):
        rows = np.flatnonzero(wanted)
        rounds = int(group.max_floats([-(-len(rows) // _CHUNK)])[0])
        buffer = io.BytesIO()
        writer = None
        for i in range(rounds):
            chunk = rows[i * _CHUNK : (i + 1) * _CHUNK]
            stable_parts = group.gather_arrays(own.stable_id[chunk])
            vector_parts = group.gather_arrays(vectors[chunk])
            if stable_parts is None or vector_parts is None:
                continue
            stable = np.concatenate(stable_parts)
            order = np.argsort(stable)
            vector = np.concatenate(vector_parts)[order]
            table = pa.table(
                {
                    "stable_id": stable[order],
                    "key": keys().take(pa.array(stable[order])),
                    "vector": pa.FixedSizeListArray.from_arrays(pa.array(vector.reshape(-1)), vector.shape[1]),
                }
            )
            writer = writer or pq.ParquetWriter(buffer, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is not None:
            writer.close()
            storage.write_bytes(storage.join(run, "embeddings", f"{name}.parquet"), buffer.getvalue())
