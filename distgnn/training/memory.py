"""What a phase takes of host and GPU memory, told and refused before it starts; where the embedding tables go."""

from __future__ import annotations

import socket
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from distgnn import resources
from distgnn.config import Config
from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from distgnn.losses import CHUNK_BYTES
from distgnn.types import UserError

_REMEDY = "lower model.dim, train.batch_size, sampler.fanout or evaluate.memory_gib"
_HOT_COPIES = 5  # a worker's hot gradients, as they arrive, their sum, repeated for all, gathered
_LOGIT_COPIES = 3  # of a chunk of in-batch logits: scores, the mask by times, what an operation makes
_PAIR_COPIES = 6  # of DirectAU's matrices of pairs, which are whole

_WEIGHT_TABLE = 24  # bytes of an edge in a row: its cell and prefix sum, with ids of 4 bytes
_ENTRY_TABLE = 72  # bytes of an entry while a thread draws: its slots in the table, node and cut-off with room, drawn


@dataclass(frozen=True)
class Need:
    """Bytes that a worker takes at most of one memory; a step and an evaluation never overlap.

    Attributes:
        tables: rows, moments and features. sampler: its scratch. step, evaluation: beyond these.
    """

    tables: int = 0
    sampler: int = 0
    step: int = 0
    evaluation: int = 0

    @property
    def total(self) -> int:
        """At most, at any time."""
        return self.tables + self.sampler + max(self.step, self.evaluation)


@dataclass(frozen=True)
class FeatureNeed:
    """What the features that a model takes add to a worker's needs.

    Attributes:
        store: bytes of the rows that it holds. width: f, the larger of users' and items'.
    """

    store: int = 0
    width: int = 0

    @classmethod
    def of(cls, widths: Mapping[str, int], n_own: Mapping[str, int], n_copies: int) -> FeatureNeed:
        """From the widths by role, the nodes that a worker owns by role, and how many of others it has copies of."""
        width = max(widths.values(), default=0)
        if not width:
            return cls()
        values = sum(n_own[role] * f for role, f in widths.items()) + n_copies * width
        return cls(4 * values + _FEATURE_INDEX_BYTES * (sum(n_own.values()) + n_copies), width)


_NO_FEATURES = FeatureNeed()
_FEATURE_INDEX_BYTES = 9  # of a row held: which table it is in, and where


@dataclass(frozen=True)
class Placement:
    """Where a phase keeps its tables, the same at every worker.

    Attributes:
        device: of rows, moments and features. statement: what the phase takes, in words.
    """

    device: torch.device
    statement: str


def needs(
    config: Config,
    n_nodes: int,
    n_own: int,
    workers: int,
    *,
    gpu: bool,
    tables_on_gpu: bool,
    features: FeatureNeed = _NO_FEATURES,
    weight_tables: int = 0,
) -> tuple[Need, Need]:
    """What a worker takes of host memory and of its GPU's.

    Args:
        n_nodes: N. n_own: nodes that the worker owns. workers: W. features: of the model.
        weight_tables: bytes of the tables for sampling by weight.
    """
    item = 8 if config.run.dtype == "float64" else 4
    width = config.model.dim * item
    n_hot = config.cluster.n_hot(n_nodes) if workers > 1 else 0
    tables = (n_own + n_hot) * width * (1 + config.optim.n_moments()) + features.store
    timed = config.sampler.respects_time  # a node is then an entry of a step once for each cut-off
    sampler = n_nodes * (16 * (config.sampler.threads + 1) + 8)  # 8: their stable ids and degrees
    sampler += weight_tables
    batch_size = config.for_edges(sys.maxsize).train.batch_size  # the most, where the graph is not known yet
    frontier, edges, outer = 4 * batch_size, 0, 0
    for fanout in config.sampler.fanout:
        outer = frontier * fanout
        edges += outer
        frontier *= fanout + 1
        frontier = frontier if timed else min(frontier, n_nodes)
    matrix = item * batch_size * -(-batch_size // workers)
    kind = config.loss.negatives_kind()
    logits = _LOGIT_COPIES * min(matrix, CHUNK_BYTES + item * batch_size) if kind == "in_batch" else 0
    if kind == "none":
        logits = 2 * _PAIR_COPIES * matrix  # pairs of users, pairs of items
    fetched = min(frontier, n_nodes) if timed else 0  # beside the entries' rows, and their gradients
    rows = (frontier * 3 + fetched * 2) * width + n_hot * _HOT_COPIES * (width + item)
    layers = len(config.sampler.fanout)
    if features.width:
        # As they leave and arrive, in the nodes' order and in the model's dtype; what they add, and the sum.
        rows += min(frontier, n_nodes) * (features.width * (3 * 4 + item) + 2 * width)
        layers += 1  # the sum for the own nodes
    drawn = frontier * 40 + edges * 4 * (config.sampler.prefetch + 1)
    if timed:
        drawn += frontier * (_ENTRY_TABLE * config.sampler.threads + 16 * (config.sampler.prefetch + 1))
    states = n_own * width * (layers + 1)
    scores = int(2 * config.evaluate.memory_gib * 2**30)
    if not gpu:
        return Need(tables, sampler, rows + drawn + logits, states + scores), Need()
    # Two minibatches' blocks, and a neighbour sum in torch operations, which holds a row for each edge twice.
    step = rows + logits + 2 * (frontier * 24 + edges * 4) + 2 * outer * width
    if tables_on_gpu:
        return Need(0, sampler, drawn, scores), Need(tables, 0, step, states + scores)
    return Need(tables, sampler, rows + drawn, states + scores), Need(0, 0, step, scores)


def weight_table_bytes(config: Config, n_edges: int, workers: int) -> int:
    """Bytes of a worker's tables for sampling by weight in a graph of so many edges, with equal shares; 0 without."""
    shares = workers if config.sampler.topology == "partitioned" else 1
    return -(-n_edges * 2 * _WEIGHT_TABLE // shares) if config.sampler.weighted else 0


def place_tables(
    config: Config,
    n_nodes: int,
    n_own: int,
    phase: str,
    group: WorkerGroup,
    gpu_free: int | None,
    features: FeatureNeed = _NO_FEATURES,
    weight_tables: int = 0,
) -> Placement:
    """Choose the tables' memory and say what the phase takes; a collective.

    Args:
        gpu_free: bytes free on the worker's GPU; None without GPUs. features: of the model.
        weight_tables: bytes of the tables for sampling by weight.

    Raises:
        UserError: it cannot fit; at every worker alike.
    """

    def needed(gpu: bool, on_gpu: bool) -> tuple[Need, Need]:
        where = {"gpu": gpu, "tables_on_gpu": on_gpu}
        return needs(config, n_nodes, n_own, group.size, **where, features=features, weight_tables=weight_tables)

    what = "rows, moments and features" if features.width else "rows and moments"
    if gpu_free is None:
        host, _ = needed(False, False)
        refuse_host(host.total, phase, _REMEDY, group)
        return Placement(
            group.device,
            f"{phase}: at most {resources.gib(host.total)} a worker: {what} {resources.gib(host.tables)}, "
            f"sampler {resources.gib(host.sampler)}, the larger of a step {resources.gib(host.step)} and evaluation "
            f"{resources.gib(host.evaluation)}",
        )
    on_gpu = config.cluster.tables != "host"
    host, gpu = needed(True, on_gpu)
    missing = group.max_floats([float(gpu.total - gpu_free)])[0]
    if config.cluster.tables == "auto" and missing > 0:
        on_gpu = False
        host, gpu = needed(True, False)
        missing = group.max_floats([float(gpu.total - gpu_free)])[0]
    if missing > 0:
        instead = "set cluster.tables = auto or host, or " if on_gpu else ""
        raise UserError(
            f"{phase}: a worker needs {resources.gib(int(missing))} of GPU memory more than is free on its GPU; "
            f"{instead}{_REMEDY}"
        )
    refuse_host(host.total, phase, _REMEDY, group)
    return Placement(
        group.device if on_gpu else torch.device("cpu"),
        f"{phase}: {what} ({resources.gib(gpu.tables + host.tables)} a worker) in "
        f"{'GPU' if on_gpu else 'host'} memory; a worker takes at most {resources.gib(gpu.total)} of its GPU, of which "
        f"{resources.gib(gpu_free)} is free, and {resources.gib(host.total)} of the host",
    )


def choose_topology(
    config: Config,
    n_nodes: int,
    n_own: int,
    topology_bytes: int,
    group: WorkerGroup,
    features: FeatureNeed = _NO_FEATURES,
    weight_tables: int = 0,
) -> str:
    """`sampler.topology` with `auto` resolved, the same at every worker; a collective.

    `auto` is `replicated`, unless there are several hosts and one of them has less memory free than the rows of all
    partitions and what its workers take. (The workers of a single host map all partitions between them either way.)

    Args:
        n_nodes: N. n_own: nodes that the worker owns. topology_bytes: rows of all partitions. features: of the model.
        weight_tables: bytes of the tables for sampling by weight, of all partitions: each worker has its own.
    """
    if config.sampler.topology != "auto":
        return config.sampler.topology
    gpu = config.cluster.use_gpu
    on_gpu = gpu and config.cluster.tables != "host"
    where = {"gpu": gpu, "tables_on_gpu": on_gpu}
    host, _ = needs(config, n_nodes, n_own, group.size, **where, features=features, weight_tables=weight_tables)
    hosts = _by_host(host.total, group)
    short = any(topology_bytes + needed > free for needed, free in hosts)
    return "partitioned" if len(hosts) > 1 and short else "replicated"


def topology_statement(topology: Topology, group: WorkerGroup) -> str:
    """What a worker maps of the topology, and what it holds beside; a collective."""
    mapped = resources.gib(int(group.max_floats([float(topology.nbytes())])[0]))
    tables = int(group.max_floats([float(topology.table_bytes())])[0])
    by_weight = f"; at most {resources.gib(tables)} of tables by weight in a worker's memory" if tables else ""
    if topology.holds_all:
        return f"topology replicated: {mapped} mapped, one copy a host{by_weight}"
    arrays = (topology.facts, topology.stable_id, topology.node_id, topology.user_offsets)
    beside = resources.gib(sum(array.nbytes for array in arrays))
    held = f"at most {mapped} mapped by a worker, and {beside} of all nodes' ids and degrees"
    return f"topology partitioned: {held}{by_weight}"


def refuse_host(needed: int, what: str, remedy: str, group: WorkerGroup) -> None:
    """Refuse what the workers of a host need more of together than it has free; a collective, at every worker alike.

    Args:
        needed: bytes of this worker. what: that needs them. remedy: what to do.
    """
    total, free = max(_by_host(needed, group), key=lambda pair: pair[0] - pair[1])
    if total > free:
        raise UserError(
            f"{what}: needs up to {resources.gib(total)} over the workers, {resources.gib(free)} is free; {remedy}"
        )


def _by_host(needed: int, group: WorkerGroup) -> list[tuple[int, int]]:
    """Of every host: bytes that its workers take together, and bytes free; the same at every worker, a collective."""
    name = float(zlib.crc32(socket.gethostname().encode()))
    table = np.zeros((3, group.size))
    table[:, group.rank] = name, needed, resources.available_memory()
    names, every, free = np.reshape(group.sum_floats(table.reshape(-1).tolist()), (3, -1))
    return [(int(every[names == n].sum()), int(free[names == n].min())) for n in np.unique(names)]
