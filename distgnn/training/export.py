"""The output vectors of all workers as one export, gathered at rank 0 in chunks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from distgnn import storage
from distgnn.distributed.process_group import WorkerGroup
from distgnn.export.format import FOLDER
from distgnn.export.table import Table
from distgnn.export.writer import CHUNK_ROWS, write_export
from distgnn.graph import Topology
from distgnn.partition.dataset import PreparedDataset
from distgnn.training.inference import OwnNodes
from distgnn.training.trainer import PhaseTrainer
from distgnn.types import USER


def write_embeddings(run: str, trainer: PhaseTrainer, dataset: PreparedDataset) -> None:
    """Write RUN/embeddings, an export of a trained model; a collective."""
    export_workers_rows(
        storage.join(run, FOLDER),
        trainer.group,
        model=trainer.config.model.encoder,
        dataset=dataset,
        phase=trainer.phase,
        topology=trainer.topology,
        own=trainer.own,
        rows=Table(trainer.vectors().cpu().numpy()),
    )


def export_workers_rows(
    uri: str,
    group: WorkerGroup,
    *,
    model: str,
    dataset: PreparedDataset,
    phase: str,
    topology: Topology,
    own: OwnNodes,
    rows: Table,
) -> None:
    """Write an export of rows that are spread over the workers; a collective. An export in its place is replaced.

    Args:
        uri: folder of the export.
        model, dataset, phase, topology: as in `distgnn.export.writer.write_export`.
        own: this worker's nodes. rows: their vectors `[n_own, d]`, floating point or int8.
    """
    items = _gather(group, own, rows, own.node_type != USER)
    users = _gather(group, own, rows, own.node_type == USER)
    if group.rank == 0:
        if storage.exists(uri):  # a resumed run has gone on since
            storage.remove_folder(uri)
        write_export(uri, model=model, dataset=dataset, phase=phase, users=users, items=items, topology=topology)
    else:
        for chunks in (items, users):  # in the writer's order
            for _ in chunks:
                pass
    group.barrier()


def _gather(group: WorkerGroup, own: OwnNodes, rows: Table, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, Table]]:
    """Chunks of all workers' rows (stable ids, vectors) at rank 0, nothing elsewhere; a collective as it is drawn from.

    Args:
        wanted: bool `[n_own]`.
    """
    picked = np.flatnonzero(wanted)
    share = max(1, CHUNK_ROWS // group.size)
    rounds = int(group.max_floats([-(-len(picked) // share)])[0])
    for i in range(rounds):
        chunk = picked[i * share : (i + 1) * share]
        stable = group.gather_arrays(own.stable_id[chunk])
        values = group.gather_arrays(rows.values[chunk])
        scale = None if rows.scale is None else group.gather_arrays(rows.scale[chunk])
        if stable is not None and values is not None:
            yield (
                np.concatenate(stable),
                Table(np.concatenate(values), None if scale is None else np.concatenate(scale)),
            )
