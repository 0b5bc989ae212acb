"""Inclusion probabilities and work against the oracle, and against what the sampler really reaches."""

from __future__ import annotations

import numpy as np
import pytest

from distgnn.graph import Topology
from distgnn.partition.inclusion import Reach
from distgnn.sampler import NeighborSampler, SeedOrder
from tests import naive_inclusion
from tests.small_training import small_graph


def reach_of(graph: Topology, share: float, own: np.ndarray, expand: str, fanout: tuple[int, ...] = (3, 2)) -> Reach:
    nodes = np.arange(graph.n_nodes)
    # In two ranges, as a graph of two partitions has them.
    indptr, indices = graph.part_arrays(0)
    cut = 17
    rows = [(indptr[: cut + 1], indices), (indptr[cut:] - indptr[cut], indices[indptr[cut] :])]
    return Reach(rows, graph.degree(nodes), fanout, share, own, expand)


@pytest.mark.parametrize("expand", ["all", "new"])
@pytest.mark.parametrize("everybody", [True, False])
def test_against_the_oracle(expand: str, everybody: bool) -> None:
    graph = small_graph(3)
    rows = [graph.row(v).tolist() for v in range(graph.n_nodes)]
    own = np.arange(graph.n_nodes) < graph.n_users
    own &= everybody | (np.arange(graph.n_nodes) % 3 == 0)
    reach = reach_of(graph, 0.1, own, expand)
    asked = (rows, graph.n_users, (3, 2), 0.1, set(np.flatnonzero(own).tolist()), expand)
    levels, _ = naive_inclusion.reach(*asked)
    np.testing.assert_allclose(reach.inclusion(), levels[-1], rtol=1e-9, atol=1e-12)
    work = reach.work()
    np.testing.assert_allclose(work[: graph.n_users], naive_inclusion.work(*asked), rtol=1e-9, atol=1e-12)
    assert (work[graph.n_users :] == 0).all()


def test_what_is_certain_is_finite() -> None:
    graph = small_graph(3)
    everybody = np.arange(graph.n_nodes) < graph.n_users
    reach = reach_of(graph, 1.0, everybody, "all", (100, 100))
    reached = graph.degree(np.arange(graph.n_nodes)) > 0
    assert (reach.inclusion() == reached).all()
    np.testing.assert_allclose(reach.work().sum(), 2 * graph.degree(np.arange(graph.n_nodes)).sum())


def test_the_sampler_reaches_what_is_expected() -> None:
    graph = small_graph(5, n_users=400, n_items=300, n_edges=3000)
    batch = 30
    sampler, order = NeighborSampler(graph, (3, 2), 0), SeedOrder(graph, batch, 0)
    steps = 4 * order.steps_per_epoch
    seen, drawn = np.zeros(graph.n_nodes), 0
    for step in range(steps):
        minibatch = sampler.sample(order.seeds(step), step)
        seen[minibatch.nodes] += 1
        drawn += minibatch.sampled_edges
    reach = reach_of(graph, batch / graph.n_edges, np.arange(graph.n_nodes) < graph.n_users, "all")
    expected = reach.inclusion()
    # A walk that turns back is counted twice: too much by some percent on a graph as small as this.
    assert seen.sum() / steps == pytest.approx(expected.sum(), rel=0.08)
    assert drawn / steps == pytest.approx(reach.work().sum(), rel=0.08)
    assert np.corrcoef(seen / steps, expected)[0, 1] > 0.97
