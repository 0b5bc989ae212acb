"""All workers' shares of global steps, really sampled in one process, and what the workers would send each other.

The draws of a step do not depend on who owns what, so that one graph in stable order serves every partitioning: an
array of owners says whose edges are a worker's share and which rows are remote.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from benchmarks.workloads import csc_of
from distgnn.config import Config, PartitionConfig
from distgnn.graph import Topology
from distgnn.partition.metis import assign_by_metis
from distgnn.partition.partitioning import goes_by_sampling, metis_weights
from distgnn.partition.random_assignment import assign_randomly
from distgnn.sampler import NeighborSampler, SeedOrder
from distgnn.types import MiniBatch, SeedEdges

ID_BYTES = 8  # of an id that a row is asked for by, and of a count
NODE_BYTES = 4  # of a node id between topology stores, below 2^31 nodes


@dataclass(frozen=True)
class Steps:
    """Which steps to sample.

    Attributes:
        fanout: of the hops. batch: B, global. steps: how many, spread over the first epoch. seed: of the run.
        negatives: in_batch or uniform (one an edge).
    """

    fanout: tuple[int, ...] = (10, 10)
    batch: int = 2048
    steps: int = 20
    seed: int = 0
    negatives: str = "in_batch"


@dataclass(frozen=True)
class Exchange:
    """One all_to_all. kind: of `distgnn.distributed.traffic`. sent: bytes `[from, to]`, int64, none to oneself."""

    kind: str
    sent: np.ndarray

    @property
    def busiest(self) -> int:
        """The most that a worker sends or receives."""
        return int(max(self.sent.sum(0).max(), self.sent.sum(1).max()))


def bytes_by_kind(exchanges: list[Exchange]) -> dict[str, int]:
    """Bytes between all workers."""
    total: dict[str, int] = {}
    for one in exchanges:
        total[one.kind] = total.get(one.kind, 0) + int(one.sent.sum())
    return total


@dataclass(frozen=True)
class StepCount:
    """A global step by worker; `[W]` or `[W, W]` int64.

    Attributes:
        seeds: edges of the share. edges: drawn. nodes: distinct nodes of the minibatch, whose rows it wants.
        wanted: `[asker, owner]`, rows; the diagonal is a worker's own.
        asked: `[L, asker, owner]`, frontier nodes of each hop, by the worker that owns their rows of the graph.
        answered: `[L, asker, owner]`, neighbours drawn for them.
        moved: distinct rows that a worker's optimizer moves, whoever touched them.
    """

    seeds: np.ndarray
    edges: np.ndarray
    nodes: np.ndarray
    wanted: np.ndarray
    asked: np.ndarray
    answered: np.ndarray
    moved: np.ndarray

    @property
    def remote_rows(self) -> int:
        """Rows that workers want of others."""
        return int(self.wanted.sum() - np.trace(self.wanted))

    def exchanges(self, dim: int, *, partitioned: bool, in_batch: bool, value: int = 4) -> list[Exchange]:
        """Every all_to_all of the step, in order, as `distgnn.distributed` makes it with messages.

        Args:
            dim: d. partitioned: whether rows of the graph are their owners' alone. in_batch: whether outputs are
                gathered. value: bytes of a value of a row or an output.
        """
        workers = len(self.seeds)
        each = np.ones((workers, workers), np.int64) - np.eye(workers, dtype=np.int64)
        to_all = each * self.seeds[:, None]
        remote = self.wanted * each
        found = []
        if partitioned:
            found.append(Exchange("topology", to_all * NODE_BYTES))
            for asked, answered in zip(self.asked * each, self.answered * each, strict=True):
                found += [
                    Exchange("topology", n) for n in (each * ID_BYTES, asked * NODE_BYTES, answered.T * NODE_BYTES)
                ]
        found += [Exchange("rows", n) for n in (each * ID_BYTES, remote * ID_BYTES, remote.T * dim * value)]
        if in_batch:
            found += [Exchange("gathered", n * dim * value) for n in (to_all, to_all.T)]
        return [*found, Exchange("gradients", remote * dim * value)]


@dataclass(frozen=True)
class WholeGraph:
    """A training graph in one partition, users, then items, by stable id.

    Attributes:
        indptr: int64 `[N + 1]`. indices: int32 `[2 E]`. n_users: of the nodes.
    """

    name: str
    indptr: np.ndarray
    indices: np.ndarray
    n_users: int

    @classmethod
    def of(cls, name: str) -> WholeGraph:
        """A workload of `benchmarks.workloads`, or the fit graph of a dataset of `distgnn datasets`."""
        folder = csc_of(name)
        indptr, indices = np.load(folder / "indptr.npy"), np.load(folder / "indices.npy")
        return cls(name, indptr, indices, int(np.load(folder / "n_users.npy")))

    @property
    def degree(self) -> np.ndarray:
        """Of every node, int64 `[N]`."""
        return np.diff(self.indptr)

    @property
    def n_edges(self) -> int:
        """E."""
        return len(self.indices) // 2

    def topology(self) -> Topology:
        """For the sampler."""
        user = np.repeat(np.arange(self.n_users), self.degree[: self.n_users])
        n_items = len(self.degree) - self.n_users
        return Topology.from_edges(user, self.indices[: self.n_edges] - self.n_users, self.n_users, n_items)

    def partition(self, method: str, parts: int, config: Config) -> np.ndarray:
        """Partition of every node, int32 `[N]`; METIS's is kept in the cache.

        Args:
            method: random, or a balance of METIS. config: how training samples, for the balances that go by it.
        """
        n_items = len(self.degree) - self.n_users
        if method == "random":
            return assign_randomly(self.n_users, n_items, parts)
        config = replace(config, partition=PartitionConfig(balance=method))
        sampling = [config.sampler.fanout, config.train.batch_size] if goes_by_sampling(config.partition) else []
        marks = "-".join(map(str, [method, parts, *sum(([*m] if isinstance(m, tuple) else [m] for m in sampling), [])]))
        file = csc_of(self.name) / f"{marks}.npy"
        if not file.exists():
            weights = partial(metis_weights, n_users=self.n_users, config=config)
            item, by_item = self.indices[: self.n_edges] - self.n_users, self.indices[self.n_edges :]
            offsets = self.indptr[: self.n_users + 1], self.indptr[self.n_users :] - self.n_edges
            np.save(file, assign_by_metis(offsets[0], item, offsets[1], by_item, parts, weights))
        return np.load(file)


class SharedSteps:
    """Samples the shares of global steps.

    Args:
        topology: the whole graph as one partition: users, then items, by stable id. steps: which.
    """

    def __init__(self, topology: Topology, steps: Steps) -> None:
        assert topology.n_parts == 1
        self.topology, self.steps = topology, steps
        self._order = SeedOrder(topology, steps.batch, steps.seed)
        self._sampler = NeighborSampler(topology, steps.fanout, steps.seed, negatives=steps.negatives)

    def numbers(self) -> list[int]:
        """Which steps of the first epoch are sampled: evenly spread full ones."""
        full = max(self.topology.n_edges // self.steps.batch, 1)
        return sorted({int(step) for step in np.linspace(0, full - 1, min(self.steps.steps, full))})

    def shares(self, step: int, owner: np.ndarray, workers: int) -> Iterator[MiniBatch]:
        """The minibatch of every worker.

        Args:
            owner: of every node, integer `[N]`.
        """
        whole = self._order.seeds(step)
        owner_of_edge = owner[whole.user]
        sizes = np.bincount(owner_of_edge, minlength=workers)
        column_order = np.empty(whole.global_size, np.int64)
        column_order[np.argsort(owner_of_edge, kind="stable")] = np.arange(whole.global_size)
        for worker in range(workers):
            share = np.flatnonzero(owner_of_edge == worker)
            seeds = SeedEdges(
                step=step,
                epoch=whole.epoch,
                global_size=whole.global_size,
                user=whole.user[share],
                item=whole.item[share],
                global_user=whole.global_user,
                global_item=whole.global_item,
                global_user_position=whole.global_user_position,
                share=share,
                share_sizes=sizes,
                column_order=column_order,
            )
            yield self._sampler.sample(seeds, step)

    def count(self, step: int, owner: np.ndarray, workers: int) -> StepCount:
        """What the workers do and send in a step."""
        hops = len(self.steps.fanout)
        seeds, edges, nodes = np.zeros((3, workers), np.int64)
        wanted = np.zeros((workers, workers), np.int64)
        asked, answered = np.zeros((2, hops, workers, workers), np.int64)
        touched = np.zeros(len(owner), bool)
        for worker, batch in enumerate(self.shares(step, owner, workers)):
            seeds[worker], edges[worker], nodes[worker] = len(batch.share), batch.sampled_edges, len(batch.nodes)
            owner_of = owner[batch.nodes]
            wanted[worker] = np.bincount(owner_of, minlength=workers)
            touched[batch.nodes] = True
            for hop, block in enumerate(batch.blocks):
                drawn_from = owner_of[: block.n_dst]
                asked[hop, worker] = np.bincount(drawn_from, minlength=workers)
                answered[hop, worker] = np.bincount(drawn_from, np.diff(block.indptr), minlength=workers)
        moved = np.bincount(owner[touched], minlength=workers)
        return StepCount(seeds, edges, nodes, wanted, asked, answered, moved)
