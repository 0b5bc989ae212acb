"""Objectives of time-respecting minibatches, where a node has a vector for each cut-off, against loops."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from distgnn.config import LossConfig
from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from distgnn.sampler import NeighborSampler, SeedOrder
from distgnn.training.objective import loss_of
from distgnn.types import MiniBatch, SeedEdges
from tests.unit.graphs import random_edges

N_USERS, N_ITEMS, DIM = 30, 20, 4


def dated_graph() -> Topology:
    user, item = random_edges(2, N_USERS, N_ITEMS, 260)
    time = np.random.default_rng(1).integers(0, 12, len(user))
    return Topology.from_edges(user, item, N_USERS, N_ITEMS, time)


GRAPH = dated_graph()


@pytest.fixture
def group() -> Iterator[WorkerGroup]:
    group = WorkerGroup.join(0, 1)
    yield group
    group.leave()


def minibatch(config: LossConfig, size: int = 60) -> tuple[SeedEdges, MiniBatch]:
    sampler = NeighborSampler(
        GRAPH,
        (2,),
        5,
        negatives=config.negatives_kind(),
        num_negatives=config.num_negatives,
        time_respecting=True,
    )
    seeds = SeedOrder(GRAPH, size, 5).seeds(0)
    return seeds, sampler.sample(seeds, 0)


def vector(node: int, cutoff: int) -> np.ndarray:
    return np.random.default_rng([node, cutoff]).normal(size=DIM)


def unit(node: int, cutoff: int) -> np.ndarray:
    found = vector(node, cutoff)
    return found / np.linalg.norm(found)


def loss(config: LossConfig, batch: MiniBatch, group: WorkerGroup) -> float:
    assert batch.cutoff is not None
    n = batch.n_seed_users + batch.n_seed_items
    entries = zip(batch.node_of(np.arange(n)).tolist(), batch.cutoff[:n].tolist(), strict=True)
    rows = torch.from_numpy(np.stack([vector(*entry) for entry in entries]))
    user, item = rows[: batch.n_seed_users].requires_grad_(), rows[batch.n_seed_users :].requires_grad_()
    value = loss_of(config, batch, user, item, GRAPH, group)
    value.backward()
    assert user.grad is not None and torch.isfinite(user.grad).all()
    assert item.grad is not None and torch.isfinite(item.grad).all()
    return value.item()


def edges_of(seeds: SeedEdges) -> list[tuple[int, int, int]]:
    assert seeds.global_time is not None
    return list(zip(seeds.global_user.tolist(), seeds.global_item.tolist(), seeds.global_time.tolist(), strict=True))


def test_a_row_sees_no_column_of_a_later_edge(group: WorkerGroup) -> None:
    config = LossConfig(temperature=0.3)
    seeds, batch = minibatch(config, size=20)
    edges = edges_of(seeds)
    expected, alone, equal = 0.0, 0, 0
    for row, (user, item, time) in enumerate(edges):
        columns = [
            (other, at)
            for column, (_, other, at) in enumerate(edges)
            if column != row and at <= time and other not in GRAPH.row(user)
        ]
        alone += not columns
        equal += any(at == time for _, at in columns)
        scores = [unit(user, time) @ unit(other, at) / config.temperature for other, at in [(item, time), *columns]]
        expected += math.log(sum(math.exp(s) for s in scores)) - scores[0]
    assert 0 < alone == batch.without_negatives < len(edges)
    assert equal > len(edges) / 2
    assert loss(config, batch, group) == pytest.approx(expected / len(edges), rel=1e-10)


def test_negatives_have_the_cutoff_of_their_edge(group: WorkerGroup) -> None:
    config = LossConfig(name="bpr", num_negatives=3)
    seeds, batch = minibatch(config)
    assert batch.negative_index is not None and batch.cutoff is not None
    assert seeds.time is not None
    assert (batch.cutoff[batch.negative_index] == seeds.time[:, None]).all()
    expected = 0.0
    for (user, item, time), row in zip(edges_of(seeds), batch.node_of(batch.negative_index), strict=True):
        own = vector(user, time)
        margins = [own @ (vector(int(n), time) - vector(item, time)) for n in row]
        expected += sum(math.log1p(math.exp(m)) for m in margins) / 3
    assert loss(config, batch, group) == pytest.approx(expected / batch.global_size, rel=1e-10)


def test_directau_takes_a_nodes_latest_vector(group: WorkerGroup) -> None:
    config = LossConfig(name="directau", uniformity=0.6)
    seeds, batch = minibatch(config, size=100)
    edges = edges_of(seeds)
    expected = sum(float(((unit(u, t) - unit(i, t)) ** 2).sum()) for u, i, t in edges) / len(edges)
    for side in (0, 1):
        latest: dict[int, int] = {}
        for edge in edges:
            latest[edge[side]] = max(edge[2], latest.get(edge[side], -1))
        assert len({(edge[side], edge[2]) for edge in edges}) > len(latest) > 2
        vectors = [unit(*entry) for entry in sorted(latest.items())]
        terms = [math.exp(-2 * ((a - b) ** 2).sum()) for k, a in enumerate(vectors) for b in vectors[:k]]
        expected += 0.6 / 2 * math.log(sum(terms) / len(terms))
    assert loss(config, batch, group) == pytest.approx(expected, rel=1e-10)
