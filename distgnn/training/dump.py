"""`run.dump_blocks`: what a step trained on and drew, as stable ids, the union over the workers.

RUN/blocks/<phase>/step-<n>.npz holds, sorted and without duplicates, int64 arrays: `seeds` `[B, 2]` (user, item);
`negatives` `[n, 3]` (user, item, negative item; -1, -1 before a step's shared negatives); `hop<h>` `[e, 3]`
(destination type, destination, source; the source is of the other type), with time-respecting sampling `[e, 4]` (and
the cut-off of both).
"""

from __future__ import annotations

import io

import numpy as np

from distgnn import storage
from distgnn.distributed.process_group import WorkerGroup
from distgnn.types import MiniBatch


def stable_arrays(batch: MiniBatch) -> dict[str, np.ndarray]:
    """A worker's own part of the dump."""
    stable = batch.stable_id
    user, item = stable[batch.user_index], stable[batch.item_index]
    arrays = {"seeds": np.stack([user, item], 1)}
    negative = batch.negative_index
    if negative is None:
        arrays["negatives"] = np.empty((0, 3), np.int64)
    elif negative.ndim == 1:
        nobody = np.full(len(negative), -1)
        arrays["negatives"] = np.stack([nobody, nobody, stable[negative]], 1)
    else:
        row, column = np.nonzero(negative >= 0)
        arrays["negatives"] = np.stack([user[row], item[row], stable[negative[row, column]]], 1)
    for hop, block in enumerate(batch.blocks):
        destination = np.repeat(np.arange(block.n_dst), np.diff(block.indptr))
        columns = [batch.node_type[destination].astype(np.int64), stable[destination], stable[block.indices]]
        if batch.cutoff is not None:
            columns.append(batch.cutoff[destination])
        arrays[f"hop{hop}"] = np.stack(columns, 1)
    return arrays


def dump_blocks(run: str, phase: str, batch: MiniBatch, group: WorkerGroup) -> None:
    """Gather, merge and write one step; a collective."""
    merged = {}
    for name, array in stable_arrays(batch).items():
        parts = group.gather_arrays(np.ascontiguousarray(array, np.int64))
        if parts is not None:
            merged[name] = np.unique(np.concatenate(parts), axis=0)
    if group.rank == 0:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **merged)  # zip entries carry a fixed date: equal content is equal bytes
        storage.write_bytes(storage.join(run, "blocks", phase, f"step-{batch.step:08d}.npz"), buffer.getvalue())
