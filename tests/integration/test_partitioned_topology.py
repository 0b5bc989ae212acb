"""Samplers that hold their own partitions alone: what they send, how they stop, and what ends them."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sampled_steps import SharedSteps, Steps, bytes_by_kind
from distgnn.data.interactions import Interactions
from distgnn.distributed import mailboxes
from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from distgnn.loader import PrefetchLoader
from distgnn.partition.book import PartitionBook, relabel
from distgnn.partition.stable_graph import StableGraph
from distgnn.sampler import NeighborSampler, SeedOrder, store_of
from distgnn.types import MiniBatch, SeedEdges, WorkerError
from tests.small_training import batch_of, small_config, small_trainer
from tests.two_workers import run_two_workers
from tests.unit.graphs import random_edges

W = 2
SQUARE = ["sampler.fanout=2", "train.batch_size=4", "sampler.exclude_targets=false", "cluster.exchange=messages"]


def cut(
    user: np.ndarray,
    item: np.ndarray,
    part: np.ndarray,
    n_users: int,
    time: np.ndarray | None,
    weight: np.ndarray | None = None,
) -> tuple[list[Topology], PartitionBook]:
    """The whole graph, then what each of W workers holds of it."""
    n_parts = int(part.max()) + 1
    book = relabel(part, n_users, n_parts)
    graph = StableGraph.build(Interactions(user, item, time, weight), n_users, len(part) - n_users)
    rows = [graph.rows_of(book, p) for p in range(n_parts)]
    pairs = [(r.indptr, r.indices) for r in rows]
    times = [r.times for r in rows]
    ids = (book.offsets, book.stable_id, book.node_id)
    weights = None if weight is None else [r.weight for r in rows]
    whole = Topology(*ids, pairs, graph.user_offsets, times=None if time is None else times, weights=weights)
    degrees = whole.degree(np.arange(whole.n_nodes)).astype(np.int32)
    own = []
    for r in range(W):
        mine = book.worker_parts(r, W)
        held, dated = ([x if p in mine else None for p, x in enumerate(arrays)] for arrays in (pairs, times))
        weighed = None if weights is None else [w if p in mine else None for p, w in enumerate(weights)]
        own.append(Topology(*ids, held, graph.user_offsets, degrees, None if time is None else dated, weighed))
    return [whole, *own], book


def square(kind: str = "") -> tuple[list[Topology], PartitionBook]:
    """Two users and two items, all joined, user 0's edges at time 0, user 1's at 1; a worker owns one of each.

    Weighted, the edge of user 1 and item 0 has none.
    """
    user = np.array([0, 0, 1, 1])
    weight = np.array([1, 1, 0, 1], np.float32) if kind == "weighted" else None
    return cut(user, np.array([0, 1, 0, 1]), np.array([0, 1, 0, 1]), 2, user if kind == "timed" else None, weight)


def larger(kind: str = "") -> tuple[list[Topology], PartitionBook]:
    """Five partitions, the last without a node that has an edge; weighted, with edges that weigh nothing."""
    user, item = random_edges(3, 40, 20, 300)
    part = np.random.default_rng(2).integers(0, 4, 44 + 23)
    part[40:44] = part[64:] = 4
    rng = np.random.default_rng(5)
    time = rng.integers(0, 9, len(user)) if kind == "timed" else None
    weight = rng.pareto(1.0, len(user)) * (rng.random(len(user)) < 0.7) if kind == "weighted" else None
    return cut(user, item, part, 44, time, None if weight is None else weight.astype(np.float32))


def loader_of(
    graph: Topology,
    book: PartitionBook,
    group: WorkerGroup,
    threads: int,
    transport: str,
    sampler_class: type = NeighborSampler,
) -> PrefetchLoader:
    bounds = book.worker_bounds(W)
    store = store_of(graph, bounds, group, steps=2, transport=transport)
    order = SeedOrder(graph, 11, 7, bounds, group.rank, store)
    options = {"negatives": "uniform", "num_negatives": 2}
    options |= {"time_respecting": graph.has_times, "weighted": graph.has_weights}
    sampler = sampler_class(graph, (3, 2), 7, store=store, **options)
    return PrefetchLoader(order, sampler, 0, 40, threads=threads, prefetch=2)


def flat(batch: MiniBatch) -> list[np.ndarray]:
    assert batch.negative_index is not None
    arrays = [] if batch.cutoff is None or batch.entry_row is None else [batch.cutoff, batch.entry_row]
    arrays += [batch.nodes, batch.user_index, batch.item_index, batch.negative_index, batch.node_type, batch.stable_id]
    return arrays + [a for b in batch.blocks for a in (b.indptr, b.indices, b.degree)]


class Broken(NeighborSampler):
    """Fails at step 5."""

    def sample(self, seeds: SeedEdges | np.ndarray, step: int) -> MiniBatch:
        if step == 5:
            raise ZeroDivisionError("a mistake in the sampler")
        return super().sample(seeds, step)


def count(group: WorkerGroup, folder: Path) -> None:
    """One step of the square."""
    graphs, book = square()
    config = small_config(*SQUARE, "model.dim=3")
    trainer = small_trainer(config, folder, graphs[1 + group.rank], group, book.worker_bounds(W))
    trainer.train_step(batch_of(trainer, 0))
    # In: items of the step, one hop. float64 rows of width 3: 24 bytes.
    # The share is (user, both items): 2 items told; one item is the other's, its id is asked for, and its 2 users come
    # as an answer; as much is answered. A frontier's size is 8 bytes, an id in a request or an answer 4.
    assert trainer.totals.traffic.bytes == {
        "topology": 2 * 4 + 8 + 1 * 4 + 2 * 4,
        "rows": 8 + 2 * 8 + 2 * 24,  # how many, two ids (the other user and item), and the same two rows answered
        "features": 0,
        "gradients": 2 * 24,
        "gathered": 2 * 24 + 2 * 24,  # its own two outputs, and the gradients of the other's two
    }
    exchanges = {"topology": 1 + 3, "rows": 3, "features": 0, "gradients": 1, "gathered": 2}
    assert trainer.totals.traffic.exchanges == exchanges


def count_timed(group: WorkerGroup, folder: Path) -> None:
    """The same step with cut-offs: a time is 8 bytes more."""
    graphs, book = square("timed")
    config = small_config(*SQUARE, "sampler.time_respecting=true")
    trainer = small_trainer(config, folder, graphs[1 + group.rank], group, book.worker_bounds(W))
    batch = batch_of(trainer, 0)
    trainer.train_step(batch)
    told = 2 * 12
    asked = 8 + 12  # the other's item, up to the own user's time
    # An answer's length, a degree and the neighbours: user 0 alone until time 0, both users until 1.
    answered = 8 + 4 + 4 * (2 if group.rank == 0 else 1)
    # Worker 1 has reached user 0 up to time 1, and asks how many edges it then has.
    degrees = (8 + 0) + 4 if group.rank == 0 else (8 + 12) + 0
    assert trainer.totals.traffic.bytes["topology"] == told + asked + answered + degrees
    assert trainer.totals.traffic.exchanges["topology"] == 1 + 4 + 3
    assert len(batch.nodes) == len(batch.node_type) == 3 + group.rank


def count_weighted(group: WorkerGroup, folder: Path) -> None:
    """The step of the square by weight: an answer is how many were drawn, and these."""
    graphs, book = square("weighted")
    config = small_config(*SQUARE, "sampler.weighted=true")
    trainer = small_trainer(config, folder, graphs[1 + group.rank], group, book.worker_bounds(W))
    batch = batch_of(trainer, 0)
    trainer.train_step(batch)
    # Items told and the other's item asked for, as without weights; of item 0 user 0 alone is drawn, of item 1 both.
    answered = 8 + 4 + 4 * (1 if group.rank == 0 else 2)
    assert trainer.totals.traffic.bytes["topology"] == 2 * 4 + (8 + 4) + answered
    assert trainer.totals.traffic.exchanges["topology"] == 1 + 4
    assert batch.sampled_edges == (1 + 2) + (2 if group.rank == 0 else 1)


def count_as_sampled(group: WorkerGroup, folder: Path) -> None:
    """What the benchmarks count in one process is what two workers send."""
    graphs, book = larger()
    config = small_config("cluster.exchange=messages", "train.batch_size=11")
    bounds = book.worker_bounds(W)
    trainer = small_trainer(config, folder, graphs[1 + group.rank], group, bounds)
    topology = Topology.from_edges(*random_edges(3, 40, 20, 300), 44, 23)
    shared = SharedSteps(topology, Steps(fanout=(3, 2), batch=11))
    owner = np.searchsorted(bounds[1:], book.node_id, side="right")
    exchanges = []
    for step in range(6):
        trainer.train_step(batch_of(trainer, step))
        exchanges += shared.count(step, owner, W).exchanges(6, partitioned=True, in_batch=True, value=8)
    traffic = trainer.totals.traffic
    assert {"features": 0, **bytes_by_kind(exchanges)} == traffic.over_workers(group)
    assert Counter(one.kind for one in exchanges) == Counter(traffic.exchanges)


def agree(group: WorkerGroup, folder: Path, transport: str) -> None:
    """Minibatches are those of a worker that holds everything, also after leaving early."""
    for kind, threads in (("", 1), ("", 3), ("timed", 3), ("weighted", 3)):
        graphs, book = larger(kind)
        ours = loader_of(graphs[1 + group.rank], book, group, threads, transport)
        theirs = loader_of(graphs[0], book, group, 1, transport)
        for stop in (6, 40):
            seen = 0
            for a, b in zip(ours, theirs, strict=True):
                assert all((x == y).all() for x, y in zip(flat(a), flat(b), strict=True))
                seen += 1
                if seen == stop:
                    break
            assert seen == stop


def agree_in_parts(group: WorkerGroup, folder: Path, transport: str) -> None:
    """The same with boxes that hold a few ids: most messages go in several parts."""
    mailboxes._CAPACITY = 20
    agree(group, folder, transport)


def one_fails(group: WorkerGroup, folder: Path, transport: str) -> None:
    """The sampler of rank 1 fails: it says why, and the other one ends too."""
    graphs, book = larger()
    kind = Broken if group.rank == 1 else NeighborSampler
    loader = loader_of(graphs[1 + group.rank], book, group, 3, transport, kind)
    expected = (WorkerError, ZeroDivisionError) if group.rank == 1 else WorkerError
    with pytest.raises(expected, match="a mistake in the sampler" if group.rank == 1 else "worker 0, sampling"):
        list(loader)


def one_is_silent(group: WorkerGroup, folder: Path, transport: str) -> None:
    """Rank 1 samples nothing: rank 0 gives up after the group's timeout."""
    graphs, book = larger()
    loader = loader_of(graphs[1 + group.rank], book, group, 1, transport)
    if group.rank == 1:
        while not (folder / "done").exists():
            time.sleep(0.05)
        return
    started = time.monotonic()
    with pytest.raises(WorkerError, match="worker 0, sampling"):
        list(loader)
    assert time.monotonic() - started < 30
    (folder / "done").touch()


CASES = {
    "count": (count, 60.0),
    "count timed": (count_timed, 60.0),
    "count weighted": (count_weighted, 60.0),
    "count as sampled": (count_as_sampled, 60.0),
}
EXCHANGES = {
    "agree": (agree, 60.0),
    "one fails": (one_fails, 60.0),
    "one is silent": (one_is_silent, 3.0),
}
CASES |= {
    f"{name}, {transport}": (partial(case, transport=transport), timeout)
    for name, (case, timeout) in EXCHANGES.items()
    for transport in ("messages", "memory")
}
CASES["agree in parts"] = (partial(agree_in_parts, transport="memory"), 60.0)


def worker(rank: int, name: str, folder: Path) -> None:
    case, timeout = CASES[name]
    case(WorkerGroup.join(rank, W, init_method=f"file://{folder}/meet", timeout_seconds=timeout), folder)


@pytest.mark.parametrize("name", CASES)
def test_two_workers(tmp_path: Path, name: str) -> None:
    run_two_workers(worker, name, tmp_path)
