"""A step's candidates against the graph's adjacency."""

from __future__ import annotations

import numpy as np
import pytest

from distgnn.config_reading import load_config
from distgnn.distillation.batches import CandidateSampler, StudentBatch
from distgnn.sampler import SeedOrder
from distgnn.training.inference import OwnNodes
from distgnn.types import USER
from tests.small_training import adjacency, small_graph

GRAPH = small_graph(3)
EDGE = adjacency(GRAPH)
TOP, LISTED, NEGATIVES, BATCH = 12, 5, 30, 48
WHOLE = np.array([0, GRAPH.n_nodes])
HALVES = np.array([0, 17, GRAPH.n_nodes])  # of one partition: users first


def lists_of(stable_user: int) -> np.ndarray:
    """Some items that a user does not have, int32 `[TOP]`."""
    unseen = np.flatnonzero(EDGE[GRAPH.node_id[stable_user], GRAPH.node_id[GRAPH.n_users :]] == 0)
    picked = np.random.default_rng(stable_user).permutation(unseen)[:TOP]
    return np.concatenate([picked, np.full(TOP - len(picked), -1)]).astype(np.int32)


def batch(step: int, bounds: np.ndarray = WHOLE, rank: int = 0, seed: int = 5) -> StudentBatch:
    own = OwnNodes(GRAPH, bounds, rank)
    users = np.flatnonzero(own.node_type == USER)
    lists = np.array([lists_of(s) for s in own.stable_id[users]], np.int32).reshape(-1, TOP)
    list_of = np.full(len(own.nodes), -1, np.int64)
    list_of[users] = np.arange(len(users))
    names = {"top": TOP, "listed": LISTED, "negatives": NEGATIVES}
    config = load_config(None, [f"distill.{k}={v}" for k, v in names.items()]).distill
    sampler = CandidateSampler(GRAPH, own, lists, list_of, config, seed)
    return sampler.sample(SeedOrder(GRAPH, BATCH, seed, bounds, rank).seeds(step), step)


@pytest.mark.parametrize("step", [0, 1, 4])
def test_masks_are_the_adjacency(step: int) -> None:
    found = batch(step)
    seeds = SeedOrder(GRAPH, BATCH, 5).seeds(step)
    user, item, shared = found.nodes[found.user], found.nodes[found.item], found.nodes[found.shared]
    assert (user == seeds.user).all()
    assert (item == seeds.item).all()
    assert (GRAPH.node_id[GRAPH.n_users + found.shared_item] == shared).all()
    known = np.zeros((len(user), NEGATIVES))
    known[tuple(found.shared_known)] = 1
    assert (known == EDGE[user][:, shared]).all()
    expected = EDGE[user][:, seeds.global_item]
    expected[np.arange(len(user)), found.share] = 0  # an edge's own item is its target
    known = np.zeros((len(user), found.global_size))
    known[tuple(found.batch_known)] = 1
    assert (known == expected).all()
    assert known.any()


def test_listed_items_are_the_users_own_and_rows_name_them() -> None:
    for step in range(5):
        found = batch(step)
        for b, items in enumerate(found.listed_item):
            stable_user = GRAPH.stable_id[found.nodes[found.user[b]]]
            drawn = items[items >= 0]
            assert len(drawn) == min(LISTED, (lists_of(stable_user) >= 0).sum())
            assert set(drawn) <= set(lists_of(stable_user))
            nodes = found.nodes[found.listed[b]]
            assert (nodes[: len(drawn)] == GRAPH.node_id[GRAPH.n_users + drawn]).all()
            assert (nodes[len(drawn) :] == found.nodes[found.item[b]]).all()
        assert (np.diff(found.nodes) > 0).all()
    assert (found.listed_item == -1).any()  # user 0 has nearly everything


def test_shares_of_two_workers_are_one_workers_batch() -> None:
    empty = 0
    for step in range(6):
        whole, shares = batch(step), [batch(step, HALVES, rank) for rank in (0, 1)]
        assert sorted(np.concatenate([s.share for s in shares]).tolist()) == list(range(whole.global_size))
        for share, low in zip(shares, HALVES, strict=False):
            assert (share.listed_item == whole.listed_item[share.share]).all()
            assert (share.shared_item == whole.shared_item).all()
            assert (share.own_user + low == share.nodes[share.user]).all()
            empty += not len(share.share)
    assert (batch(0).shared_item != batch(1).shared_item).any()
    assert (batch(0).shared_item != batch(0, seed=6).shared_item).any()


def test_an_empty_share_still_has_the_shared_items() -> None:
    bounds = np.array([0, GRAPH.n_nodes - 4, GRAPH.n_nodes])  # the second worker owns items alone
    found = batch(0, bounds, 1)
    assert len(found.share) == 0
    assert found.listed.shape == (0, LISTED)
    assert (found.nodes[found.shared] == GRAPH.node_id[GRAPH.n_users + found.shared_item]).all()
    assert found.share_sizes.tolist() == [BATCH, 0]
