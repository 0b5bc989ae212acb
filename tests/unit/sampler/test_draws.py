"""Sampled rows: uniform, without repeats, never a target edge, and unbiased when propagated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from distgnn.graph import Topology
from distgnn.kernels.neighbor_sampling import past_excluded, pick_positions
from distgnn.kernels.rng import combine
from distgnn.nn.batch import block_tensors, node_keys
from distgnn.nn.encoders import LightGCN
from distgnn.sampler import NeighborSampler, SeedOrder
from distgnn.types import MiniBatch


def picks(degree: int, fanout: int, draws: int) -> np.ndarray:
    """Positions of many draws, int64 `[draws, fanout]`."""
    size = 8
    while size < 4 * fanout:
        size *= 2
    table = np.zeros((2, size), np.int64)
    out = np.empty((draws, fanout), np.int64)
    for i in range(draws):
        pick_positions(np.uint64(combine(np.uint64(7), np.uint64(i))), degree, fanout, table, i + 1, out[i])
    return out


@pytest.mark.parametrize(
    ("degree", "fanout"),
    [
        (2, 1),
        *((33, fanout) for fanout in (1, 10, 32)),
        (90, 40),
        *((17_605, fanout) for fanout in (1, 10, 32)),
        *((40_000, fanout) for fanout in (1, 10)),  # past 16 bits of a draw by a part, and several times over
        (200_000, 10),
    ],
)
def test_positions_are_uniform(degree: int, fanout: int) -> None:
    drawn = picks(degree, fanout, 20_000)
    assert all(len(set(row)) == fanout for row in drawn[:500].tolist())
    bins = np.bincount(drawn.reshape(-1) * min(degree, 64) // degree, minlength=min(degree, 64))
    width = np.bincount(np.arange(degree) * min(degree, 64) // degree)
    expected = drawn.size * width / degree
    # Draws without replacement are negatively correlated: the statistic is scaled back.
    statistic = ((bins - expected) ** 2 / expected).sum() * (degree - 1) / (degree - fanout)
    assert 1e-4 < stats.chi2.sf(statistic, len(bins) - 1) < 1 - 1e-4


def test_ranks_are_mapped_past_the_excluded_positions() -> None:
    excluded = np.array([0, 3, 4, 9])
    allowed = [p for p in range(12) if p not in excluded]
    assert [past_excluded(r, excluded, 0, 4) for r in range(len(allowed))] == allowed


def random_graph(seed: int, n_users: int = 60, n_items: int = 40, n_edges: int = 600) -> Topology:
    rng = np.random.default_rng(seed)
    edges = np.unique(rng.integers(0, n_users, n_edges) * n_items + rng.integers(0, n_items, n_edges))
    return Topology.from_edges(edges // n_items, edges % n_items, n_users, n_items)


def test_blocks_hold_real_edges_but_no_target() -> None:
    graph = random_graph(0)
    order = SeedOrder(graph, 64, seed=1)
    sampler = NeighborSampler(graph, (4, 3), 1, negatives="uniform", num_negatives=2)
    for step in range(order.steps_per_epoch):
        seeds = order.seeds(step)
        batch = sampler.sample(seeds, step)
        targets = set(zip(seeds.global_user.tolist(), seeds.global_item.tolist(), strict=True))
        targets |= {(b, a) for a, b in targets}
        for block, fanout in zip(batch.blocks, (4, 3), strict=True):
            for i in range(block.n_dst):
                node = int(batch.nodes[i])
                row = batch.nodes[block.indices[block.indptr[i] : block.indptr[i + 1]]].tolist()
                allowed = [j for j in graph.row(node).tolist() if (node, j) not in targets]
                assert set(row) <= set(allowed)
                assert len(row) == len(set(row)) == min(fanout, len(allowed))
        assert batch.negative_index is not None
        for user, row in zip(seeds.user, batch.nodes[batch.negative_index], strict=True):
            assert not set(row.tolist()) & set(graph.row(int(user)).tolist())


def test_every_epoch_is_a_permutation() -> None:
    graph = random_graph(2)
    order = SeedOrder(graph, 100, seed=3)
    epochs = [
        np.concatenate([order.edge_ids(e * order.steps_per_epoch + t) for t in range(order.steps_per_epoch)])
        for e in range(2)
    ]
    for epoch in epochs:
        assert (np.sort(epoch) == np.arange(graph.n_edges)).all()
    assert (epochs[0] != epochs[1]).any()


def propagate(batch: MiniBatch, rows: torch.Tensor, seed_rows: np.ndarray) -> np.ndarray:
    """LightGCN's output of the given seeds from a minibatch's blocks."""
    tensors = block_tensors(batch.blocks, node_keys(batch.node_type, batch.stable_id), torch.device("cpu"), rows.dtype)
    return LightGCN(rows.shape[1], len(batch.blocks))(tensors, rows[torch.from_numpy(batch.nodes)], 0).numpy()[
        seed_rows
    ]


def test_sampled_propagation_is_unbiased() -> None:
    graph = random_graph(4, 30, 20, 250)
    n = graph.n_nodes
    adjacency = np.zeros((n, n))
    for node in range(n):
        adjacency[node, graph.row(node)] = 1
    degree = np.maximum(adjacency.sum(1), 1)
    step = adjacency / np.sqrt(degree[:, None] * degree[None, :])
    rows = np.random.default_rng(5).normal(size=(n, 2))
    full = (rows + step @ rows + step @ step @ rows) / 3
    sampler = NeighborSampler(graph, (3, 2), 6)
    samples = []
    for t in range(3000):
        batch = sampler.sample(np.arange(n), t)
        assert batch.seed_index is not None
        samples.append(propagate(batch, torch.from_numpy(rows), batch.seed_index))
    drawn = np.stack(samples)
    z = (drawn.mean(0) - full) / (drawn.std(0) / np.sqrt(len(drawn)) + 1e-9)
    assert np.abs(z).max() < 5
    assert 0.6 < (z**2).mean() < 1.5


def auc(exclude: bool) -> float:
    """AUC of target edges against negatives, scored by LightGCN on frozen random rows."""
    graph = random_graph(8, 300, 200, 4000)
    rows = torch.from_numpy(np.random.default_rng(9).normal(size=(graph.n_nodes, 32)))
    order = SeedOrder(graph, 128, seed=10)
    sampler = NeighborSampler(graph, (10, 10), 10, exclude_targets=exclude, negatives="uniform")
    wins = []
    for t in range(order.steps_per_epoch):
        batch = sampler.sample(order.seeds(t), t)
        assert batch.negative_index is not None
        out = propagate(batch, rows, np.arange(batch.blocks[0].n_dst))
        user = out[batch.user_index]
        positive = (user * out[batch.item_index]).sum(1)
        wins.append(positive > (user * out[batch.negative_index[:, 0]]).sum(1))
    return float(np.concatenate(wins).mean())


def test_a_target_edge_does_not_leak_into_its_score() -> None:
    assert auc(exclude=True) == pytest.approx(0.5, abs=0.04)
    assert auc(exclude=False) > 0.6
