"""Minibatches drawn by weight: against plain Python, and the same however the graph is cut."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from distgnn.graph import Topology
from distgnn.partition.book import PartitionBook
from distgnn.sampler import NeighborSampler, SeedOrder
from distgnn.types import MiniBatch, UserError
from tests import naive_sampling as naive
from tests import naive_weighted
from tests.unit.graphs import partitioned, random_edges

N_USERS, N_ITEMS, SEED = 50, 30, 11
FANOUT = (4, 3)

Node = tuple[int, int]


def cut(n_parts: int) -> tuple[Topology, PartitionBook]:
    """Heavy edges, light ones, and some that weigh nothing."""
    user, item = random_edges(3, N_USERS, N_ITEMS, 500)
    rng = np.random.default_rng(4)
    weight = (rng.pareto(1.0, len(user)) * (rng.random(len(user)) < 0.8)).astype(np.float32)
    graph, book = partitioned(user, item, N_USERS, N_ITEMS, n_parts, weight=weight)
    graph.validate()
    return graph, book


def sampler_of(graph: Topology, **options: object) -> NeighborSampler:
    made = {"negatives": "uniform", "num_negatives": 2, "weighted": True, **options}
    return NeighborSampler(graph, FANOUT, SEED, **made)  # type: ignore[arg-type]


def names_of(batch: MiniBatch) -> list[Node]:
    return list(zip(batch.node_type.tolist(), batch.stable_id.tolist(), strict=True))


def edges_of(batch: MiniBatch) -> list[tuple[int, Node, Node]]:
    names = names_of(batch)
    return [
        (hop, names[i], names[k])
        for hop, block in enumerate(batch.blocks)
        for i, row in enumerate(np.split(block.indices, block.indptr[1:-1]))
        for k in row
    ]


@pytest.mark.parametrize("exclude", [True, False])
def test_a_minibatch_equals_plain_python(exclude: bool) -> None:
    graph, _ = cut(4)
    node_type, stable, degree = graph.describe(np.arange(graph.n_nodes))
    name = list(zip(node_type.tolist(), stable.tolist(), strict=True))
    order = SeedOrder(graph, 40, SEED)
    sampler = sampler_of(graph, exclude_targets=exclude)
    for step in (0, 3):
        seeds = order.seeds(step)
        batch = sampler.sample(seeds, step)
        pairs = {(int(u), int(i)) for u, i in zip(seeds.global_user, seeds.global_item, strict=True)}
        targets = {*pairs, *((i, u) for u, i in pairs)} if exclude else set()
        for hop, block in enumerate(batch.blocks):
            for k, drawn in enumerate(np.split(block.indices, block.indptr[1:-1])):
                node = int(batch.nodes[k])
                row = graph.row(node).tolist()
                key = naive.key_of(SEED, naive.DRAW, step)
                for word in (hop, *name[node]):
                    key = naive.combine(key, word)
                out = {p for p, other in enumerate(row) if (node, other) in targets}
                wanted = naive_weighted.sampled_row(graph.row_weights(node).tolist(), out, FANOUT[hop], key)
                assert batch.nodes[drawn].tolist() == [row[p] for p in wanted]
            assert (block.degree == degree[batch.nodes[: block.n_src]]).all()  # the full ones
        assert names_of(batch) == [name[n] for n in batch.nodes]


def test_shares_unite_to_the_whole_step() -> None:
    found = []
    for n_parts, workers in ((1, 1), (8, 1), (8, 3)):
        graph, book = cut(n_parts)
        bounds = book.worker_bounds(workers)
        batches = [
            sampler_of(graph).sample(SeedOrder(graph, 40, SEED, bounds, rank).seeds(2), 2) for rank in range(workers)
        ]
        found.append(set().union(*map(edges_of, batches)))
    assert found[0] == found[1] == found[2]
    uniform = sampler_of(cut(1)[0], weighted=False).sample(SeedOrder(cut(1)[0], 40, SEED).seeds(2), 2)
    assert found[0] != set(edges_of(uniform))


def test_threads_draw_alike() -> None:
    """Threads that take turns all the time, a few calls each."""
    interval = sys.getswitchinterval()
    graph, _ = cut(3)
    sampler, order = sampler_of(graph), SeedOrder(graph, 20, SEED)
    alone = [edges_of(sampler.sample(order.seeds(step), step)) for step in range(60)]
    found: dict[int, list[tuple[int, Node, Node]]] = {}

    def work(first: int) -> None:
        for step in range(first, 60, 3):
            found[step] = edges_of(sampler.sample(order.seeds(step), step))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert [found[step] for step in range(60)] == alone


def test_options_are_checked() -> None:
    user, item = random_edges(3, N_USERS, N_ITEMS, 500)
    time = np.zeros(len(user), np.int64)
    without = Topology.from_edges(user, item, N_USERS, N_ITEMS, time)
    with pytest.raises(UserError, match="weighted = True needs a graph with weights"):
        sampler_of(without)
    both = Topology.from_edges(user, item, N_USERS, N_ITEMS, time, np.ones(len(user), np.float32))
    with pytest.raises(UserError, match="weighted = True does not go with time_respecting"):
        sampler_of(both, time_respecting=True)
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(UserError, match=f"weights of at least 0, and an edge has {wrong:g}"):
            Topology.from_edges(user, item, N_USERS, N_ITEMS, weight=np.append(np.ones(len(user) - 1), wrong))
