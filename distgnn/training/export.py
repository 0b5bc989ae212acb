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
        model, dataset, phase: as in `distgnn.export.writer.write_export`.
        topology: the phase's graph, with the rows of the worker's own nodes.
        own: this worker's nodes. rows: their vectors `[n_own, d]`, floating point or int8.
    """
    items = _gather(group, own, rows, own.node_type != USER)
    seen = _SeenItems(group, topology)
    users = _gather(group, own, rows, own.node_type == USER, seen)
    if group.rank == 0:
        if storage.exists(uri):  # a resumed run has gone on since
            storage.remove_folder(uri)
        write_export(uri, model=model, dataset=dataset, phase=phase, users=users, items=items, seen=seen)
    else:
        for chunks in (items, users):  # in the writer's order
            for _ in chunks:
                pass
    group.barrier()


class _SeenItems:
    """Training items of the users that were gathered last, told by their owners."""

    def __init__(self, group: WorkerGroup, topology: Topology) -> None:
        self._group, self._topology = group, topology
        self._stable = self._count = self._items = np.empty(0, np.int64)  # as gathered, at rank 0

    def gather(self, nodes: np.ndarray, stable: list[np.ndarray] | None) -> None:
        """Take a chunk; a collective. `nodes` are this worker's, `stable` everybody's at rank 0."""
        indptr, items = self._topology.neighbors(nodes)
        counts = self._group.gather_arrays(np.diff(indptr))
        gathered = self._group.gather_arrays(items.astype(np.int32))
        if stable is not None and counts is not None and gathered is not None:
            self._stable, self._count, self._items = (np.concatenate(x) for x in (stable, counts, gathered))

    def __call__(self, stable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 CSR of the chunk's users, ascending stable ids."""
        order = np.argsort(self._stable)
        assert (self._stable[order] == stable).all()
        count = self._count[order]
        indptr = np.concatenate([[0], np.cumsum(count)])
        first = np.cumsum(self._count) - self._count
        return indptr, self._items[np.repeat(first[order] - indptr[:-1], count) + np.arange(indptr[-1])]


def _gather(
    group: WorkerGroup, own: OwnNodes, rows: Table, wanted: np.ndarray, seen: _SeenItems | None = None
) -> Iterator[tuple[np.ndarray, Table]]:
    """Chunks of all workers' rows (stable ids, vectors) at rank 0, nothing elsewhere; a collective as it is drawn from.

    Args:
        wanted: bool `[n_own]`. seen: also gathers the nodes' items.
    """
    picked = np.flatnonzero(wanted)
    share = max(1, CHUNK_ROWS // group.size)
    rounds = int(group.max_floats([-(-len(picked) // share)])[0])
    for i in range(rounds):
        chunk = picked[i * share : (i + 1) * share]
        stable = group.gather_arrays(own.stable_id[chunk])
        values = group.gather_arrays(rows.values[chunk])
        scale = None if rows.scale is None else group.gather_arrays(rows.scale[chunk])
        if seen is not None:
            seen.gather(own.nodes[chunk], stable)
        if stable is not None and values is not None:
            yield (
                np.concatenate(stable),
                Table(np.concatenate(values), None if scale is None else np.concatenate(scale)),
            )
