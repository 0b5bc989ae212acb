"""Objectives of whole minibatches against loops over edges and the graph's own rows."""

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
from distgnn.types import MiniBatch
from tests.small_training import small_graph

GRAPH = small_graph(3)
DIM = 4


@pytest.fixture
def group() -> Iterator[WorkerGroup]:
    group = WorkerGroup.join(0, 1)
    yield group
    group.leave()


def minibatch(config: LossConfig, step: int = 0, size: int = 48) -> MiniBatch:
    sampler = NeighborSampler(GRAPH, (2,), 5, negatives=config.negatives_kind(), num_negatives=config.num_negatives)
    return sampler.sample(SeedOrder(GRAPH, size, 5).seeds(step), step)


def vectors(batch: MiniBatch) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.from_numpy(np.random.default_rng(2).normal(size=(GRAPH.n_nodes, DIM)))
    nodes = torch.from_numpy(batch.nodes[: batch.n_seed_users + batch.n_seed_items])
    user, item = drawn[nodes[: batch.n_seed_users]], drawn[nodes[batch.n_seed_users :]]
    return user.requires_grad_(), item.requires_grad_()


def score(config: LossConfig, batch: MiniBatch, user: int, item: int) -> float:
    """Score of two nodes."""
    drawn = np.random.default_rng(2).normal(size=(GRAPH.n_nodes, DIM))
    u, i = drawn[user], drawn[item]
    if config.score_kind() == "cosine":
        return float(u @ i / np.linalg.norm(u) / np.linalg.norm(i))
    return float(u @ i)


def edges_of(batch: MiniBatch) -> list[tuple[int, int]]:
    return [(int(batch.nodes[u]), int(batch.nodes[i])) for u, i in zip(batch.user_index, batch.item_index, strict=True)]


def is_edge(user: int, item: int) -> bool:
    return item in GRAPH.row(user)


def loss(config: LossConfig, batch: MiniBatch, group: WorkerGroup) -> float:
    user, item = vectors(batch)
    value = loss_of(config, batch, user, item, GRAPH, group)
    value.backward()
    assert user.grad is not None and torch.isfinite(user.grad).all()
    assert item.grad is not None and torch.isfinite(item.grad).all()
    return value.item()


@pytest.mark.parametrize("score_kind", ["cosine", "dot"])
@pytest.mark.parametrize("logq", [False, True])
def test_in_batch_softmax(group: WorkerGroup, score_kind: str, logq: bool) -> None:
    config = LossConfig(score=score_kind, logq=logq, temperature=0.3)
    batch = minibatch(config)
    edges = edges_of(batch)
    masked, expected = 0, 0.0
    for row, (user, own) in enumerate(edges):
        total, target = 0.0, 0.0
        for column, (_, item) in enumerate(edges):
            if column != row and is_edge(user, item):
                masked += 1
                continue
            logit = score(config, batch, user, item) / config.temperature
            if logq:
                logit -= math.log(GRAPH.degree([item])[0] / GRAPH.n_edges)
            total += math.exp(logit)
            if column == row:
                assert item == own
                target = logit
        expected += math.log(total) - target
    assert masked > len(edges)  # a test of masking needs something to mask
    assert loss(config, batch, group) == pytest.approx(expected / len(edges), rel=1e-10)


def test_all_of_a_users_positives_are_masked_and_not_the_batchs_alone(group: WorkerGroup) -> None:
    config = LossConfig()
    batch = minibatch(config)
    edges = edges_of(batch)
    assert batch.masked is not None
    pairs = set(zip(*batch.masked.tolist(), strict=True))
    in_batch = set(edges)
    beyond = [(r, c) for r, c in pairs if (edges[r][0], edges[c][1]) not in in_batch]
    assert beyond  # positives that are no seed edge of this step
    assert all(is_edge(edges[r][0], edges[c][1]) and r != c for r, c in pairs)
    assert len(pairs) == batch.masked.shape[1]


@pytest.mark.parametrize("name", ["bpr", "sampled_softmax"])
@pytest.mark.parametrize("score_kind", ["cosine", "dot"])
def test_uniform_negatives(group: WorkerGroup, name: str, score_kind: str) -> None:
    config = LossConfig(name=name, negatives="uniform", num_negatives=3, score=score_kind, temperature=0.4)
    batch = minibatch(config, size=400)  # the whole graph: also the user who has nearly every item
    assert batch.negative_index is not None
    edges = edges_of(batch)
    expected = 0.0
    tempered = config.temperature if name == "sampled_softmax" or score_kind == "cosine" else 1.0
    for (user, item), row in zip(edges, batch.negative_index, strict=True):
        positive = score(config, batch, user, item) / tempered
        negatives = [score(config, batch, user, int(batch.nodes[n])) / tempered for n in row if n >= 0]
        assert not any(is_edge(user, int(batch.nodes[n])) for n in row if n >= 0)
        if name == "bpr":
            terms = [math.log1p(math.exp(n - positive)) for n in negatives]
            expected += sum(terms) / len(terms) if terms else 0.0
        else:
            expected += math.log(sum(math.exp(s - positive) for s in [positive, *negatives]))
    assert loss(config, batch, group) == pytest.approx(expected / len(edges), rel=1e-10)


@pytest.mark.parametrize("name", ["bpr", "sampled_softmax"])
def test_shared_negatives_leave_out_the_users_positives(group: WorkerGroup, name: str) -> None:
    config = LossConfig(name=name, negatives="shared", num_negatives=12, score="dot", temperature=0.7)
    batch = minibatch(config)
    assert batch.negative_index is not None and batch.negative_index.shape == (12,)
    tempered = config.temperature if name == "sampled_softmax" else 1.0
    shared = [int(batch.nodes[n]) for n in batch.negative_index]
    expected, left_out = 0.0, 0
    for user, item in edges_of(batch):
        positive = score(config, batch, user, item) / tempered
        negatives = [score(config, batch, user, n) / tempered for n in shared if not is_edge(user, n)]
        left_out += len(shared) - len(negatives)
        if name == "bpr":
            expected += sum(math.log1p(math.exp(n - positive)) for n in negatives) / max(1, len(negatives))
        else:
            expected += math.log(sum(math.exp(s - positive) for s in [positive, *negatives]))
    assert left_out > 0
    assert loss(config, batch, group) == pytest.approx(expected / batch.global_size, rel=1e-10)


def test_directau_sees_distinct_nodes(group: WorkerGroup) -> None:
    """Alignment over edges, uniformity over pairs of distinct users and of distinct items, in plain loops."""
    config = LossConfig(name="directau", uniformity=0.6)
    batch = minibatch(config, size=100)
    edges = edges_of(batch)
    drawn = np.random.default_rng(2).normal(size=(GRAPH.n_nodes, DIM))
    unit = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    expected = sum(float(((unit[u] - unit[i]) ** 2).sum()) for u, i in edges) / len(edges)
    for side in (0, 1):
        nodes = sorted({edge[side] for edge in edges})
        assert 2 < len(nodes) < len(edges)
        terms = [math.exp(-2 * ((unit[a] - unit[b]) ** 2).sum()) for a in nodes for b in nodes if a < b]
        expected += 0.6 / 2 * math.log(sum(terms) / len(terms))
    assert loss(config, batch, group) == pytest.approx(expected, rel=1e-10)


def test_directau_of_one_edge_is_its_alignment(group: WorkerGroup) -> None:
    batch = minibatch(LossConfig(name="directau"), size=1)
    ((user, item),) = edges_of(batch)
    expected = 2 - 2 * score(LossConfig(score="cosine"), batch, user, item)
    assert loss(LossConfig(name="directau"), batch, group) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("negatives", ["uniform", "in_batch", "shared"])
def test_a_user_who_has_every_item_adds_no_loss(group: WorkerGroup, negatives: str) -> None:
    graph = Topology.from_edges(np.zeros(4, np.int64), np.arange(4), 1, 4)
    config = LossConfig(negatives=negatives, num_negatives=2)
    batch = NeighborSampler(graph, (2,), 0, negatives=negatives, num_negatives=2).sample(
        SeedOrder(graph, 4, 0).seeds(0), 0
    )
    user = torch.ones(batch.n_seed_users, 3, dtype=torch.float64, requires_grad=True)
    item = torch.eye(4, 3, dtype=torch.float64)[: batch.n_seed_items].requires_grad_()
    value = loss_of(config, batch, user, item, graph, group)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    assert user.grad is not None and user.grad.abs().max() < 1e-12
