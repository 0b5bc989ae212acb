"""Cut the graph and write both topologies, partitioned alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from distgnn import resources
from distgnn.config import Config, PartitionConfig
from distgnn.data.interactions import TRAIN, VALID
from distgnn.partition.book import PartitionBook, relabel
from distgnn.partition.cut import Cut, CutCounter
from distgnn.partition.dataset_files import DatasetWriter, partitioning_name, user_offsets_file
from distgnn.partition.inclusion import Reach
from distgnn.partition.ingest import LabelledEdges
from distgnn.partition.metis import assign_by_metis, metis_bytes, node_weights, require_pymetis, whole_weights
from distgnn.partition.random_assignment import assign_randomly
from distgnn.partition.stable_graph import StableGraph
from distgnn.types import UserError

Log = Callable[[str], None]


def check_method(config: PartitionConfig, parts: int) -> None:
    """Refuse METIS before any work where it is not installed."""
    if config.method == "metis" and parts > 1:
        require_pymetis()


def write_partitioning(
    writer: DatasetWriter,
    labelled: LabelledEdges,
    n_users: int,
    n_items: int,
    config: Config,
    log: Log,
) -> tuple[str, dict[str, Any]]:
    """Partition the graph of training and validation edges and write the `full` and the `fit` topology.

    Returns:
        The partitioning's name and its entry in the manifest.

    Raises:
        UserError: more partitions than nodes; METIS asked for and not installed.
    """
    parts, partition = config.parts, config.partition
    if parts > n_users + n_items:
        raise UserError(f"partition.parts = {parts} is more than the graph has nodes ({n_users + n_items}): lower it")
    full = StableGraph.build(labelled.of(TRAIN, VALID), n_users, n_items)
    method, reason = _affordable_method(partition, full, parts, log)
    n_fit = int((labelled.labels == TRAIN).sum())
    book = relabel(_assign(full, method, config.for_edges(n_fit)), n_users, parts)
    name = partitioning_name(method, parts)
    writer.book(name, book)
    cut = _write_phase(writer, name, "full", full, book)
    del full
    _write_phase(writer, name, "fit", StableGraph.build(labelled.of(TRAIN), n_users, n_items), book)
    log(_describe(name, cut))
    facts = {
        "parts": parts,
        "method": method,
        "requested": partition.method,
        "reason": reason,
        "balance": partition.balance if method == "metis" else "",
        **asdict(cut),
    }
    return name, facts


def _affordable_method(config: PartitionConfig, graph: StableGraph, parts: int, log: Log) -> tuple[str, str]:
    """The method to use, and why it is not the one asked for."""
    if config.method != "metis" or parts == 1:
        return config.method, ""
    need = metis_bytes(graph.n_nodes, len(graph.edges))
    limit = int(config.memory_gib * 2**30) or resources.available_memory()
    log(f"METIS: estimated peak memory {resources.gib(need)}, allowed {resources.gib(limit)}")
    if need <= limit:
        return "metis", ""
    reason = f"METIS needs about {resources.gib(need)}, allowed are {resources.gib(limit)} (partition.memory_gib)"
    log(f"{reason}: partitions are dealt at random instead; results are the same, more rows are remote")
    # The figure of a moment's free memory stays out of the dataset: the same data gives the same manifest.
    return "random", "METIS did not fit in memory"


def _assign(graph: StableGraph, method: str, config: Config) -> np.ndarray:
    if method == "random":
        return assign_randomly(graph.n_users, graph.n_nodes - graph.n_users, config.parts)
    return assign_by_metis(
        graph.user_offsets,
        graph.edges.item,
        graph.item_offsets,
        graph.edges.user[graph.by_item],
        config.parts,
        partial(metis_weights, n_users=graph.n_users, config=config),
    )


def goes_by_sampling(config: PartitionConfig) -> bool:
    """Whether partitions depend on how training samples: on its fanout and its batch."""
    return config.method == "metis" and config.balance in ("inclusion", "work")


def metis_weights(indptr: np.ndarray, indices: np.ndarray, *, n_users: int, config: Config) -> np.ndarray:
    """Weights by `partition.balance`, int64 `[N]`: by degree, or by what a global step expects of the nodes.

    `inclusion`: the chance that the step reaches the node, and its owner then reads and moves its row. `work`: the
    draws that the step makes for a user's seed edges; items have the least weight, nothing is drawn for their owners.

    Args:
        indptr, indices: of users, then items. config: balance, fanout, expand and batch_size (not 0).
    """
    degree, balance = np.diff(indptr), config.partition.balance
    if not goes_by_sampling(config.partition):
        return node_weights(degree, balance)
    share = min(config.train.batch_size / max(len(indices) // 2, 1), 1.0)
    users, sampler = np.arange(len(degree)) < n_users, config.sampler
    reach = Reach([(indptr, indices)], degree, sampler.fanout, share, users, sampler.expand)
    return whole_weights(reach.inclusion() if balance == "inclusion" else reach.work())


def _write_phase(writer: DatasetWriter, name: str, phase: str, graph: StableGraph, book: PartitionBook) -> Cut:
    writer.array(user_offsets_file(name, phase), graph.user_offsets)
    counter = CutCounter(book)
    for part in range(book.n_parts):
        rows = graph.rows_of(book, part)
        writer.part(name, phase, part, rows)
        counter.add(part, rows.indices)
    return counter.result()


def _describe(name: str, cut: Cut) -> str:
    return (
        f"{name}: {cut.cut_edges:,} edges cut ({cut.cut:.1%}), halo rows / N {cut.halo:.2f},"
        f" largest / mean: nodes {cut.node_balance:.2f}, edges {cut.edge_balance:.2f}"
    )
