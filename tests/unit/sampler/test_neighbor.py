"""Minibatches: nested blocks of real edges, the same at every number of partitions, workers and threads."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch
from torch_geometric.nn import SAGEConv

from distgnn.graph import Topology
from distgnn.loader import PrefetchLoader
from distgnn.nn.batch import block_tensors, node_keys
from distgnn.nn.encoders import GraphSAGE
from distgnn.partition.book import PartitionBook
from distgnn.sampler import NeighborSampler, SeedOrder, to_pyg_adjacencies
from distgnn.types import Block, MiniBatch, SeedEdges, UserError
from tests import naive_sampling as naive
from tests.unit.graphs import partitioned, random_edges

N_USERS, N_ITEMS, SEED = 50, 30, 11
FANOUT = (4, 3)

Node = tuple[int, int]


def cut(n_parts: int) -> tuple[Topology, PartitionBook]:
    user, item = random_edges(3, N_USERS, N_ITEMS, 500)
    graph, book = partitioned(user, item, N_USERS, N_ITEMS, n_parts)
    graph.validate()
    return graph, book


def named(batch: MiniBatch, local: np.ndarray) -> list[Node]:
    """(type, stable id) of local nodes."""
    return list(zip(batch.node_type[local].tolist(), batch.stable_id[local].tolist(), strict=True))


def drawn_of(batch: MiniBatch, block: Block, i: int) -> list[Node]:
    return named(batch, block.indices[block.indptr[i] : block.indptr[i + 1]])


def edges_of(batch: MiniBatch) -> set[tuple[int, Node, Node]]:
    """(hop, destination, source) of all drawn edges."""
    names = named(batch, np.arange(len(batch.nodes)))
    return {
        (hop, names[i], source)
        for hop, block in enumerate(batch.blocks)
        for i in range(block.n_dst)
        for source in drawn_of(batch, block, i)
    }


def sampler_of(graph: Topology, **options: object) -> NeighborSampler:
    return NeighborSampler(graph, FANOUT, SEED, **{"negatives": "uniform", "num_negatives": 2, **options})  # type: ignore[arg-type]


def share(n_parts: int, workers: int, rank: int, step: int, **options: object) -> tuple[SeedEdges, MiniBatch]:
    graph, book = cut(n_parts)
    order = SeedOrder(graph, 40, SEED, book.worker_bounds(workers), rank)
    seeds = order.seeds(step)
    return seeds, sampler_of(graph, **options).sample(seeds, step)


@pytest.mark.parametrize("expand", ["all", "new"])
@pytest.mark.parametrize("exclude", [True, False])
def test_blocks_are_nested_and_equal_plain_python(expand: str, exclude: bool) -> None:
    graph, _ = cut(4)
    neighbors: dict[Node, list[Node]] = {}
    node_type, stable, degree = graph.describe(np.arange(graph.n_nodes))
    name = list(zip(node_type.tolist(), stable.tolist(), strict=True))
    for node in range(graph.n_nodes):
        neighbors[name[node]] = [name[j] for j in graph.row(node).tolist()]
    order = SeedOrder(graph, 40, SEED)
    sampler = sampler_of(graph, expand=expand, exclude_targets=exclude)
    for step in (0, 1, order.steps_per_epoch - 1, order.steps_per_epoch):
        seeds = order.seeds(step)
        batch = sampler.sample(seeds, step)
        assert len(set(batch.nodes.tolist())) == len(batch.nodes)
        assert batch.node_type[: batch.n_seed_users].max() == 0 < batch.node_type[batch.n_seed_users :][0]
        assert (batch.nodes[batch.user_index] == seeds.user).all()
        assert (batch.nodes[batch.item_index] == seeds.item).all()
        targets = [(name[u], name[i]) for u, i in zip(seeds.global_user, seeds.global_item, strict=True)]
        both = {*targets, *((b, a) for a, b in targets)} if exclude else set()
        reached = batch.n_seed_users + batch.n_seed_items
        first_drawn_at: dict[int, int] = {}
        for hop, block in enumerate(batch.blocks):
            assert block.n_dst == reached == len(block.indptr) - 1
            assert (block.degree == degree[batch.nodes[: block.n_src]]).all()
            for i in range(block.n_dst):
                at = first_drawn_at.setdefault(i, hop) if expand == "new" else hop
                destination = named(batch, np.array([i]))[0]
                key = naive.key_of(SEED, naive.DRAW, step)
                for word in (at, *destination):
                    key = naive.combine(key, word)
                left_out = [x for x in neighbors[destination] if (destination, x) in both]
                expected = naive.sampled_row(neighbors[destination], left_out, FANOUT[at], key)
                assert drawn_of(batch, block, i) == expected
            assert set(block.indices.tolist()) >= set(range(block.n_dst, block.n_src))
            reached = block.n_src
        assert reached == len(batch.nodes)
        drawn = batch.blocks if expand == "all" else batch.blocks[-1:]
        assert batch.sampled_edges == sum(len(b.indices) for b in drawn)


def test_partitions_do_not_change_a_minibatch() -> None:
    for step in (0, 3):
        one, eight = share(1, 1, 0, step)[1], share(8, 1, 0, step)[1]
        everything = [named(b, np.arange(len(b.nodes))) for b in (one, eight)]
        assert everything[0] == everything[1]
        for a, b in zip(one.blocks, eight.blocks, strict=True):
            assert (a.indptr == b.indptr).all()
            assert (a.indices == b.indices).all()
        assert one.negative_index is not None
        assert eight.negative_index is not None
        assert (one.negative_index == eight.negative_index).all()


@pytest.mark.parametrize("workers", [2, 3])
def test_shares_unite_to_the_whole_step(workers: int) -> None:
    whole_seeds, whole = share(8, 1, 0, 2)
    shares = [share(8, workers, rank, 2) for rank in range(workers)]
    assert set().union(*(edges_of(b) for _, b in shares)) == edges_of(whole)
    positions = np.concatenate([s.share for s, _ in shares])
    assert sorted(positions.tolist()) == list(range(whole_seeds.global_size))
    negatives: dict[int, list[Node]] = {}
    for seeds, batch in [*shares, (whole_seeds, whole)]:
        assert [len(s.share) for s, _ in shares] == shares[0][0].share_sizes.tolist()
        assert (positions[seeds.column_order] == np.arange(40)).all() or seeds is whole_seeds
        assert batch.negative_index is not None
        for position, row in zip(seeds.share.tolist(), batch.negative_index, strict=True):
            assert negatives.setdefault(position, named(batch, row)) == named(batch, row)


def test_an_empty_share_is_a_minibatch() -> None:
    graph, book = cut(4)
    nobody = np.array([0, 0, graph.n_nodes])  # worker 0 owns nothing
    seeds = SeedOrder(graph, 40, SEED, nobody, 0).seeds(0)
    batch = sampler_of(graph).sample(seeds, 0)
    assert len(seeds.user) == len(batch.nodes) == batch.sampled_edges == 0
    assert [b.n_dst for b in batch.blocks] == [0, 0]
    assert seeds.global_size == 40


def test_in_batch_columns_mask_all_positives_but_the_own() -> None:
    graph, _ = cut(3)
    seeds = SeedOrder(graph, 40, SEED).seeds(1)
    batch = sampler_of(graph, negatives="in_batch").sample(seeds, 1)
    assert batch.masked is not None
    positives = [set(graph.row(int(u)).tolist()) for u in seeds.user]
    expected = naive.known_columns(positives, seeds.share.tolist(), seeds.global_item.tolist())
    assert {*zip(*batch.masked.tolist(), strict=True)} == expected != set()
    assert batch.negative_index is None


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_give_the_same_minibatches_in_order(threads: int) -> None:
    graph, _ = cut(4)
    order, sampler = SeedOrder(graph, 40, SEED), sampler_of(graph)
    loaded = list(PrefetchLoader(order, sampler, 2, 14, threads=threads, prefetch=5))
    assert [b.step for b in loaded] == list(range(2, 14))
    for batch in loaded:
        alone = sampler_of(graph).sample(order.seeds(batch.step), batch.step)
        assert (batch.nodes == alone.nodes).all()
        assert edges_of(batch) == edges_of(alone)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_a_thread_is_raised_at_its_step(threads: int) -> None:
    graph, _ = cut(2)

    class Failing(NeighborSampler):
        def sample(self, seeds: SeedEdges | np.ndarray, step: int) -> MiniBatch:
            if step == 4:
                raise UserError("step four")
            return super().sample(seeds, step)

    before = threading.active_count()
    seen = []
    with pytest.raises(UserError, match="step four"):  # noqa: PT012
        for batch in PrefetchLoader(
            SeedOrder(graph, 40, SEED), Failing(graph, FANOUT, SEED), 0, 9, threads=threads, prefetch=4
        ):
            seen.append(batch.step)
    assert seen == [0, 1, 2, 3]
    assert threading.active_count() == before


def test_nodes_as_seeds_keep_their_order_and_repeats() -> None:
    graph, _ = cut(4)
    seeds = np.random.default_rng(0).integers(0, graph.n_nodes, 60)
    batch = sampler_of(graph).sample(seeds, 5)
    assert batch.seed_index is not None
    assert (batch.nodes[batch.seed_index] == seeds).all()
    assert batch.blocks[0].n_dst == len(set(seeds.tolist())) < len(seeds)
    assert (np.diff(batch.node_type[: batch.blocks[0].n_dst].astype(int)) >= 0).all()
    assert batch.negative_index is None
    # An edge seed and a node seed share their draws: the key knows the node and not what it is for.
    edges = SeedOrder(graph, 40, SEED).seeds(5)
    with_edges = sampler_of(graph, exclude_targets=False, negatives="none").sample(edges, 5)
    with_nodes = sampler_of(graph).sample(np.concatenate([edges.user, edges.item]), 5)
    assert edges_of(with_edges) == edges_of(with_nodes)


@pytest.mark.parametrize("seed", [-1, N_USERS + N_ITEMS])
def test_nodes_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(UserError, match=r"must lie in \[0, 80\)"):
        sampler_of(cut(1)[0]).sample(np.array([0, seed]), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fanout": ()}, "at least one hop"),
        ({"fanout": (3, 0)}, "each at least 1"),
        ({"expand": "some"}, "all, new"),
        ({"negatives": "hard"}, "uniform, shared"),
    ],
)
def test_options_are_checked(change: dict[str, object], message: str) -> None:
    options = {"fanout": FANOUT, "seed": 0, **change}
    with pytest.raises(UserError, match=message):
        NeighborSampler(cut(1)[0], **options)  # type: ignore[arg-type]


def test_a_step_changes_every_field_of_the_key() -> None:
    _, first = share(1, 1, 0, 0, exclude_targets=False, negatives="none")
    seeds, _ = share(1, 1, 0, 0)
    graph, _ = cut(1)
    again = sampler_of(graph, exclude_targets=False, negatives="none").sample(dataclasses.replace(seeds), 1)
    other = NeighborSampler(graph, FANOUT, SEED + 1, exclude_targets=False).sample(seeds, 0)
    assert edges_of(first) != edges_of(again)
    assert edges_of(first) != edges_of(other)


def test_pyg_layers_give_the_same_numbers() -> None:
    _, batch = share(4, 1, 0, 0)
    dim = 5
    torch.manual_seed(0)
    ours = GraphSAGE(dim, 2, 0.0).double()
    x = torch.randn(len(batch.nodes), dim, dtype=torch.float64)
    tensors = block_tensors(batch.blocks, node_keys(batch.node_type, batch.stable_id), torch.device("cpu"), x.dtype)
    nodes, adjacencies = to_pyg_adjacencies(batch)
    assert nodes.tolist() == batch.nodes.tolist()
    hidden = x
    for index, (edge_index, (n_src, n_dst)) in enumerate(adjacencies):
        assert n_src == len(hidden)
        conv = SAGEConv((dim, dim), dim).double()
        conv.lin_l.weight.data, conv.lin_l.bias.data = ours.neighbor[index].weight.data, ours.own[index].bias.data
        conv.lin_r.weight.data = ours.own[index].weight.data
        hidden = conv((hidden, hidden[:n_dst]), edge_index)
        if index == 0:
            hidden = torch.nn.functional.gelu(hidden)
    torch.testing.assert_close(ours(tensors, x, 0), hidden, rtol=1e-12, atol=1e-12)
