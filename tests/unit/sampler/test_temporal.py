"""Time-respecting minibatches: against plain Python, what they never hold, and what propagation over them gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distgnn.graph import Topology
from distgnn.nn.batch import block_tensors, entry_index, node_keys
from distgnn.nn.encoders import LightGCN
from distgnn.partition.book import PartitionBook
from distgnn.sampler import NeighborSampler, SeedOrder, to_pyg_adjacencies
from distgnn.sampler.frontier import NO_CUTOFF
from distgnn.types import MiniBatch, SeedEdges, UserError
from tests import naive_temporal as naive
from tests.unit.graphs import partitioned, random_edges

N_USERS, N_ITEMS, SEED = 50, 30, 11
FANOUT = (4, 3)

Node = tuple[int, int]
Entry = tuple[Node, int]


def cut(n_parts: int) -> tuple[Topology, PartitionBook]:
    """Few distinct timestamps, negative ones too."""
    user, item = random_edges(3, N_USERS, N_ITEMS, 500)
    time = np.random.default_rng(4).integers(-5, 15, len(user))
    graph, book = partitioned(user, item, N_USERS, N_ITEMS, n_parts, time)
    graph.validate()
    return graph, book


def sampler_of(graph: Topology, **options: object) -> NeighborSampler:
    made = {"negatives": "uniform", "num_negatives": 2, "time_respecting": True, **options}
    return NeighborSampler(graph, FANOUT, SEED, **made)  # type: ignore[arg-type]


def entries_of(batch: MiniBatch) -> list[Entry]:
    assert batch.cutoff is not None
    names = zip(batch.node_type.tolist(), batch.stable_id.tolist(), strict=True)
    return list(zip(names, batch.cutoff.tolist(), strict=True))


def rows_of(graph: Topology) -> tuple[list[Node], dict[Node, list[tuple[Node, int]]]]:
    """Name of every node id, and every node's row of (neighbour, timestamp)."""
    node_type, stable, _ = graph.describe(np.arange(graph.n_nodes))
    name = list(zip(node_type.tolist(), stable.tolist(), strict=True))
    rows = {}
    for node in range(graph.n_nodes):
        time, _ = graph.row_times(node)
        rows[name[node]] = [(name[j], t) for j, t in zip(graph.row(node).tolist(), time.tolist(), strict=True)]
    return name, rows


@pytest.mark.parametrize("expand", ["all", "new"])
@pytest.mark.parametrize("exclude", [True, False])
def test_a_minibatch_equals_plain_python(expand: str, exclude: bool) -> None:
    graph, _ = cut(4)
    name, rows = rows_of(graph)
    order = SeedOrder(graph, 40, SEED)
    sampler = sampler_of(graph, expand=expand, exclude_targets=exclude)
    for step in (0, 1, order.steps_per_epoch - 1, order.steps_per_epoch):
        seeds = order.seeds(step)
        assert seeds.time is not None
        batch = sampler.sample(seeds, step)
        assert batch.negative_index is not None and batch.entry_row is not None
        pairs = [(name[u], name[i]) for u, i in zip(seeds.global_user, seeds.global_item, strict=True)]
        targets = {*pairs, *((b, a) for a, b in pairs)} if exclude else set()
        time, size = seeds.time.tolist(), seeds.global_size
        negatives = [name[n] for n in batch.node_of(batch.negative_index).reshape(-1)]
        starts = [(n, t) for group in zip(*pairs, strict=True) for n, t in zip(group, time, strict=True)]
        starts += [(n, time[k // 2]) for k, n in enumerate(negatives)]
        entries, hops = naive.minibatch(rows, starts, FANOUT, SEED, step, targets, expand)
        assert entries_of(batch) == entries
        for index, wanted in ((batch.user_index, starts[:size]), (batch.item_index, starts[size : 2 * size])):
            assert [entries[k] for k in index] == wanted
        assert [entries[k] for k in batch.negative_index.reshape(-1)] == starts[2 * size :]
        assert batch.n_seed_users == len(set(starts[:size]))
        assert batch.n_seed_users + batch.n_seed_items == batch.blocks[0].n_dst == len(set(starts))
        for block, drawn in zip(batch.blocks, hops, strict=True):
            got = np.split(block.indices, block.indptr[1:-1])
            assert [[entries[k] for k in row] for row in got] == drawn
            assert block.degree.tolist() == [naive.degree(rows, e, targets) for e in entries[: block.n_src]]
        assert batch.blocks[-1].n_src == len(entries)
        assert len(set(batch.nodes.tolist())) == len(batch.nodes) < len(entries)
        assert [name[n] for n in batch.nodes[batch.entry_row]] == [node for node, _ in entries]


@pytest.mark.parametrize("expand", ["all", "new"])
def test_leaves_that_nobody_counts_change_nothing_else(expand: str) -> None:
    graph, _ = cut(4)
    order = SeedOrder(graph, 40, SEED)
    seeds = order.seeds(3)
    counted, uncounted = (sampler_of(graph, expand=expand, leaf_degrees=leaves) for leaves in (True, False))
    assert (counted.round_trips, uncounted.round_trips) == (len(FANOUT) + 1, len(FANOUT))
    first, second = (sampler.sample(seeds, 3) for sampler in (counted, uncounted))
    assert entries_of(first) == entries_of(second) and np.array_equal(first.nodes, second.nodes)
    for block, other in zip(first.blocks, second.blocks, strict=True):
        assert np.array_equal(block.indptr, other.indptr) and np.array_equal(block.indices, other.indices)
    drawn = second.blocks[-1].n_dst
    assert np.array_equal(first.blocks[-1].degree[:drawn], second.blocks[-1].degree[:drawn])
    assert (first.blocks[-1].degree[drawn:] >= 0).all() and (second.blocks[-1].degree[drawn:] == -1).all()


def share(n_parts: int, workers: int, rank: int, step: int) -> tuple[SeedEdges, MiniBatch]:
    graph, book = cut(n_parts)
    seeds = SeedOrder(graph, 40, SEED, book.worker_bounds(workers), rank).seeds(step)
    return seeds, sampler_of(graph).sample(seeds, step)


def edges_of(batch: MiniBatch) -> set[tuple[int, Entry, Entry]]:
    entries = entries_of(batch)
    return {
        (hop, entries[i], entries[k])
        for hop, block in enumerate(batch.blocks)
        for i, row in enumerate(np.split(block.indices, block.indptr[1:-1]))
        for k in row
    }


def test_shares_unite_to_the_whole_step() -> None:
    whole = edges_of(share(1, 1, 0, 2)[1])
    assert whole == edges_of(share(8, 1, 0, 2)[1])
    assert whole == set().union(*(edges_of(share(8, 3, rank, 2)[1]) for rank in range(3)))


def test_an_empty_share_is_a_minibatch() -> None:
    graph, _ = cut(4)
    seeds = SeedOrder(graph, 40, SEED, np.array([0, 0, graph.n_nodes]), 0).seeds(0)
    batch = sampler_of(graph).sample(seeds, 0)
    assert len(batch.nodes) == batch.sampled_edges == 0
    assert entries_of(batch) == []


def planted() -> tuple[Topology, int]:
    """User 0 meets item 0 at time 10; later, and at no other time, user 1 meets it: node id 1 is the future."""
    edges = [(0, 0, 10), (2, 0, 10), (3, 0, 9), (1, 0, 11), (0, 1, 3), (1, 1, 12)]
    user, item, time = (np.array(column) for column in zip(*edges, strict=True))
    return Topology.from_edges(user, item, 4, 3, time), 1


@pytest.mark.parametrize("expand", ["all", "new"])
def test_a_planted_later_edge_is_never_drawn(expand: str) -> None:
    graph, future = planted()
    order = SeedOrder(graph, 1, SEED)
    seen = {True: 0, False: 0}
    at_the_time = 0
    for step in range(30 * order.steps_per_epoch):
        seeds = order.seeds(step)
        if (seeds.user[0], seeds.item[0]) != (0, 4):
            continue
        for respects in seen:
            batch = sampler_of(graph, time_respecting=respects, expand=expand).sample(seeds, step)
            seen[respects] += future in batch.nodes
            at_the_time += respects and 2 in batch.nodes  # of the same timestamp as the target
    assert seen[True] == 0
    assert seen[False] == at_the_time == 30


def test_nodes_as_seeds_have_no_cutoff() -> None:
    graph, _ = cut(4)
    seeds = np.random.default_rng(0).integers(0, graph.n_nodes, 60)
    batch = sampler_of(graph).sample(seeds, 5)
    assert batch.seed_index is not None and batch.cutoff is not None
    assert (batch.node_of(batch.seed_index) == seeds).all()
    assert (batch.cutoff == NO_CUTOFF).all()
    assert (batch.blocks[-1].degree == graph.degree(batch.nodes)).all()
    nodes, _ = to_pyg_adjacencies(batch)
    assert nodes.tolist() == batch.nodes.tolist()


def test_pyg_sees_a_node_once_for_each_cutoff() -> None:
    _, batch = share(4, 1, 0, 0)
    nodes, adjacencies = to_pyg_adjacencies(batch)
    assert nodes.tolist() == batch.nodes[batch.entry_row].tolist()
    assert len(nodes) == adjacencies[0][1][0] > len(set(nodes.tolist()))


def test_options_are_checked() -> None:
    user, item = random_edges(3, N_USERS, N_ITEMS, 500)
    without = Topology.from_edges(user, item, N_USERS, N_ITEMS)
    with pytest.raises(UserError, match="needs a graph with timestamps"):
        sampler_of(without)
    with pytest.raises(UserError, match="'shared' does not go with time_respecting"):
        sampler_of(cut(1)[0], negatives="shared")
    with pytest.raises(UserError, match="carry no timestamps"):
        sampler_of(cut(1)[0]).sample(SeedOrder(without, 40, SEED).seeds(0), 0)


def test_columns_that_are_left() -> None:
    graph, _ = cut(3)
    found = 0
    for step in range(6):
        seeds = SeedOrder(graph, 12, SEED).seeds(step)
        batch = sampler_of(graph, negatives="in_batch").sample(seeds, step)
        assert seeds.time is not None and seeds.global_time is not None and batch.column_time is not None
        assert (batch.column_time == seeds.global_time).all()
        expected = 0
        for row, (user, time) in enumerate(zip(seeds.user, seeds.time, strict=True)):
            known = set(graph.row(int(user)).tolist())
            columns = zip(seeds.global_item.tolist(), seeds.global_time.tolist(), strict=True)
            left = [c for c, (item, at) in enumerate(columns) if c != row and at <= time and item not in known]
            expected += not left
        assert batch.without_negatives == expected
        found += expected
    assert 0 < found < 72


def propagate(batch: MiniBatch, table: torch.Tensor) -> np.ndarray:
    """LightGCN's output of the seeds."""
    keys = node_keys(batch.node_type, batch.stable_id)
    tensors = block_tensors(batch.blocks, keys, torch.device("cpu"), table.dtype)
    entries = entry_index(batch, torch.device("cpu"))
    rows = table[torch.from_numpy(batch.nodes)]
    rows = rows if entries is None else rows[entries]
    return LightGCN(table.shape[1], len(batch.blocks))(tensors, rows, 0).numpy()


def test_the_mean_of_samples_is_propagation_over_the_graph_of_then() -> None:
    """Degrees are those of the edges up to the cut-off, for destinations and sources."""
    graph, _ = cut(1)
    n = graph.n_nodes
    table = np.random.default_rng(5).normal(size=(n, 2))
    seeds = SeedOrder(graph, 6, SEED).seeds(0)
    targets = set(zip(seeds.global_user.tolist(), seeds.global_item.tolist(), strict=True))
    sampler = sampler_of(graph, negatives="none")
    outputs = []
    for step in range(3000):
        batch = sampler.sample(seeds, step)
        outputs.append(propagate(batch, torch.from_numpy(table))[np.stack([batch.user_index, batch.item_index])])
    drawn = np.stack(outputs)
    assert seeds.time is not None
    full = np.empty(drawn.shape[1:])
    for k, cutoff in enumerate(seeds.time):
        adjacency = np.zeros((n, n))
        for node in range(n):
            for j, time in zip(graph.row(node), graph.row_times(node)[0], strict=True):
                adjacency[node, j] = time <= cutoff and (node, j) not in targets and (j, node) not in targets
        degree = np.maximum(adjacency.sum(1), 1)
        matrix = adjacency / np.sqrt(degree[:, None] * degree[None, :])
        output = (table + matrix @ table + matrix @ matrix @ table) / 3
        full[:, k] = output[[seeds.user[k], seeds.item[k]]]
    error = drawn.std(0) / np.sqrt(len(drawn))
    fixed = error < 1e-12
    np.testing.assert_allclose(drawn.mean(0)[fixed], full[fixed], atol=1e-9)
    z = (drawn.mean(0) - full)[~fixed] / error[~fixed]
    assert len(z) > 12
    assert np.abs(z).max() < 4.5


def auc(respects: bool) -> float:
    """AUC of random edges against negatives on frozen random rows, in a graph whose future tells them.

    For each edge (user, item, t) a user of its own meets, after t, the item and an earlier item of the user.
    """
    rng = np.random.default_rng(8)
    n_users, n_items, n = 300, 600, 1800
    pairs = np.unique(rng.integers(0, n_users * n_items, n))
    rng.shuffle(pairs)
    user, item = pairs // n_items, pairs % n_items
    edges = [(u, i, 2 * t) for t, (u, i) in enumerate(zip(user, item, strict=True))]
    before: dict[int, int] = {}
    for t, (u, i) in enumerate(zip(user, item, strict=True)):
        if u in before:
            edges += [(n_users + t, i, 2 * t + 1), (n_users + t, before[u], 2 * t + 1)]
        before[u] = i
    all_user, all_item, time = (np.array(column) for column in zip(*edges, strict=True))
    graph = Topology.from_edges(all_user, all_item, n_users + len(pairs), n_items, time)
    table = torch.from_numpy(rng.normal(size=(graph.n_nodes, 1024)))
    order = SeedOrder(graph, 128, SEED)
    sampler = NeighborSampler(graph, (10, 10), SEED, negatives="uniform", time_respecting=respects)
    wins = []
    for step in range(order.steps_per_epoch):
        seeds = order.seeds(step)
        batch = sampler.sample(seeds, step)
        assert batch.negative_index is not None
        out = propagate(batch, table)
        of_user = out[batch.user_index]
        positive = (of_user * out[batch.item_index]).sum(1)
        won = positive > (of_user * out[batch.negative_index[:, 0]]).sum(1)
        wins.append(won[seeds.user < n_users])
    return float(np.concatenate(wins).mean())


def test_the_future_does_not_leak_into_a_score() -> None:
    assert auc(respects=True) == pytest.approx(0.5, abs=0.04)
    assert auc(respects=False) > 0.6
