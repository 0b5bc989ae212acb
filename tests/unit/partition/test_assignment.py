"""METIS, its stand-in, and the measures of a cut."""

from __future__ import annotations

import platform
import sys
from functools import partial

import numpy as np
import pytest

from distgnn.config import Config
from distgnn.config_reading import load_config
from distgnn.data.interactions import Interactions
from distgnn.partition.book import relabel
from distgnn.partition.cut import Cut, CutCounter
from distgnn.partition.metis import assign_by_metis, fill_empty_parts, metis_bytes, node_weights, require_pymetis
from distgnn.partition.partitioning import metis_weights
from distgnn.partition.random_assignment import assign_randomly
from distgnn.partition.stable_graph import StableGraph
from distgnn.types import UserError
from tests import naive_prepare

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # uint64 wraps by intention, also unjitted


def graph_of(edges: list[tuple[int, int]], n_users: int, n_items: int) -> StableGraph:
    user, item = (np.array([edge[k] for edge in edges], np.int32) for k in (0, 1))
    return StableGraph.build(Interactions(user, item), n_users, n_items)


def communities(count: int, users: int, items: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Blocks of users that share items, and a few edges between blocks."""
    edges = set()
    for c in range(count):
        for u in range(users):
            edges |= {(c * users + u, c * items + int(i)) for i in rng.integers(0, items, 6)}
    edges |= {(int(rng.integers(count * users)), int(rng.integers(count * items))) for _ in range(count * users // 5)}
    return sorted(edges)


def metis(graph: StableGraph, parts: int, balance: str) -> np.ndarray:
    by_item = graph.edges.user[graph.by_item]
    weights = partial(metis_weights, n_users=graph.n_users, config=config_of(balance))
    return assign_by_metis(graph.user_offsets, graph.edges.item, graph.item_offsets, by_item, parts, weights)


def config_of(balance: str) -> Config:
    return load_config(None, [f"partition.balance={balance}", "sampler.fanout=3,2", "train.batch_size=20"])


def measure(graph: StableGraph, part: np.ndarray, parts: int) -> Cut:
    book = relabel(part, graph.n_users, parts)
    counter = CutCounter(book)
    for p in range(parts):
        counter.add(p, graph.rows_of(book, p).indices)
    return counter.result()


@pytest.mark.parametrize("balance", ["nodes", "edges", "both", "inclusion", "work"])
def test_metis_finds_communities_and_balances_what_it_is_told(balance: str) -> None:
    rng = np.random.default_rng(0)
    graph = graph_of(communities(4, 60, 40, rng), 240, 160)
    part = metis(graph, 4, balance)
    assert part.dtype == np.int32
    cut = measure(graph, part, 4)
    random = measure(graph, assign_randomly(240, 160, 4), 4)
    assert cut.cut < 0.2 < 0.6 < random.cut
    assert cut.halo < random.halo
    indptr = np.concatenate([graph.user_offsets, graph.item_offsets[1:] + len(graph.edges)])
    indices = np.concatenate([graph.edges.item + 240, graph.edges.user[graph.by_item]])
    weights = metis_weights(indptr, indices, n_users=240, config=config_of(balance))
    load = np.bincount(part, weights)
    assert load.max() / load.mean() < 1.06
    assert (metis(graph, 4, balance) == part).all()


def test_balances_differ_where_degrees_do() -> None:
    # 40 hubs of 200 users each; 200 items of two users each.
    edges = [(u, i) for i in range(40) for u in range(i * 5, i * 5 + 200)]
    edges += [(400 + u, 40 + u // 2) for u in range(400)]
    graph = graph_of(sorted(edges), 800, 240)
    nodes, by_edges = (measure(graph, metis(graph, 4, balance), 4) for balance in ("nodes", "edges"))
    assert nodes.node_balance < by_edges.node_balance
    assert by_edges.edge_balance < nodes.edge_balance


def test_node_weights() -> None:
    degree = np.array([0, 1, 3, 8])
    assert node_weights(degree, "nodes").tolist() == [1, 1, 1, 1]
    assert node_weights(degree, "edges").tolist() == [0, 1, 3, 8]
    both = node_weights(degree, "both")
    np.testing.assert_allclose(both / both.sum(), (1 / 4 + degree / 12) / 2, atol=1e-3)
    huge = node_weights(np.zeros(10_000_000, np.int64), "both")
    assert 0 < huge.sum() < 2**31


def test_one_partition_needs_no_metis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymetis", None)
    graph = graph_of([(0, 0), (1, 1)], 2, 2)
    assert metis(graph, 1, "both").tolist() == [0, 0, 0, 0]
    with pytest.raises(UserError, match=r"partition\.method = 'metis': pymetis can't be loaded.*or set partition"):
        metis(graph, 2, "both")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(UserError, match="pymetis has no wheel for aarch64; or set partition.method = random"):
        require_pymetis()


def test_no_partition_is_empty() -> None:
    graph = graph_of([(0, 0), (0, 1), (1, 0)], 3, 3)
    for parts in range(1, 7):
        assert np.bincount(metis(graph, parts, "both"), minlength=parts).min() > 0
        assert np.bincount(assign_randomly(3, 3, parts), minlength=parts).min() > 0
    filled = fill_empty_parts(np.array([0, 0, 0, 2], np.int32), np.array([5, 1, 3, 0]), 4)
    assert filled.tolist() == [0, 1, 3, 2]


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_random_assignment_deals_users_and_items_evenly(parts: int) -> None:
    part = assign_randomly(1000, 301, parts)
    for side in (part[:1000], part[1000:]):
        counts = np.bincount(side, minlength=parts)
        assert counts.max() - counts.min() <= 1
    assert (assign_randomly(1000, 301, parts) == part).all()
    if parts > 1:  # neighbours in number are not neighbours in place
        assert abs((part[1:] == part[:-1]).mean() - 1 / parts) < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_cut_and_halo_against_the_oracle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_users, n_items, parts = 20, 12, 4
    edges = naive_prepare.random_edges(rng, n_users, n_items, 60)
    part = rng.integers(0, parts, n_users + n_items).astype(np.int32)
    got = measure(graph_of(edges, n_users, n_items), part, parts)
    cut, halo = naive_prepare.cut_and_halo(edges, part, n_users)
    assert (got.cut_edges, got.halo_rows) == (cut, halo)
    assert got.cut == pytest.approx(cut / len(edges))
    assert got.halo == pytest.approx(halo / 32)
    sizes = np.bincount(part, minlength=parts)
    assert got.node_balance == pytest.approx(sizes.max() / sizes.mean())
    load = np.bincount(part, graph_of(edges, n_users, n_items).degree(), minlength=parts)
    assert got.edge_balance == pytest.approx(load.max() / load.mean())


def test_the_estimate_grows_with_the_graph() -> None:
    assert metis_bytes(10**6, 25 * 10**6) > 5 << 30
