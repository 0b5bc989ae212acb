"""Layer-wise inference is dense propagation, in any chunks; sampled inference with every neighbour is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distgnn.distributed.process_group import WorkerGroup
from distgnn.nn.batch import BlockTensors
from distgnn.nn.encoders import GraphSAGE
from distgnn.nn.towers import MLPTower
from distgnn.sampler.full import chunks_by_edges, rotated_block
from distgnn.training import inference
from distgnn.training.inference import ModelScorer, infer, infer_sampled
from distgnn.training.product_ranking import InnerProducts
from distgnn.training.trainer import PhaseTrainer
from tests.small_training import adjacency, small_config, small_features, small_graph, small_trainer
from tests.unit.graphs import partitioned, random_edges

GRAPH = small_graph(1)
BOUNDS = np.array([0, GRAPH.n_nodes])


@pytest.fixture
def group() -> Iterator[WorkerGroup]:
    group = WorkerGroup.join(0, 1)
    yield group
    group.leave()


def trainer(
    run: Path, group: WorkerGroup, *overrides: str, features: dict[str, np.ndarray] | None = None
) -> PhaseTrainer:
    made = small_trainer(small_config(*overrides), run, GRAPH, group, features=features)
    made.model.train()  # inference must turn dropout off itself
    return made


def vectors(made: PhaseTrainer, memory_bytes: int) -> torch.Tensor:
    return infer(made.model, made.embedding, GRAPH, made.own, BOUNDS, made.group, memory_bytes, features=made.features)


def test_lightgcn_is_dense_propagation(tmp_path: Path, group: WorkerGroup) -> None:
    made = trainer(tmp_path, group)
    dense = torch.from_numpy(adjacency(GRAPH))
    root = dense.sum(1).clamp(min=1).rsqrt()
    step = root[:, None] * dense * root[None, :]
    x = made.embedding.weight
    torch.testing.assert_close(vectors(made, 1 << 30), (x + step @ x + step @ step @ x) / 3, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("users", "items"), [(3, 5), (0, 5), (3, 0)])
def test_features_are_projected_and_added(tmp_path: Path, group: WorkerGroup, users: int, items: int) -> None:
    features = small_features(GRAPH, users, items)
    made = trainer(tmp_path, group, "sampler.fanout=99,99", features=features)
    dense = torch.from_numpy(adjacency(GRAPH))
    root = dense.sum(1).clamp(min=1).rsqrt()
    step = root[:, None] * dense * root[None, :]
    maps = {name.split(".")[2]: value for name, value in made.model.named_parameters()}
    assert maps.keys() == features.keys()
    added = {
        role: torch.from_numpy(features[role]).double() @ maps[role].T if role in maps else torch.zeros(n, 6)
        for role, n in (("user", GRAPH.n_users), ("item", GRAPH.n_items))
    }
    with torch.no_grad():
        x = made.embedding.weight + torch.cat([added["user"], added["item"]])
        assert (x != made.embedding.weight).any(1).sum() == sum(len(f) for f in features.values())
        expected = (x + step @ x + step @ step @ x) / 3
    width = made.embedding.weight.shape[1] * 8
    for memory in (1, 40 * width, 1 << 30):
        torch.testing.assert_close(vectors(made, memory), expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(made.vectors(sampled=True), expected, rtol=1e-10, atol=1e-12)
    isolated = GRAPH.n_nodes - 1  # an item without an edge: its own start and W f alone
    torch.testing.assert_close(vectors(made, 1 << 30)[isolated], x[isolated] / 3)


def test_graphsage_and_towers_are_the_dense_formula(tmp_path: Path, group: WorkerGroup) -> None:
    made = trainer(tmp_path, group, "model.encoder=graphsage", "model.tower=mlp", "model.dropout=0.5")
    encoder = made.model.encoder
    assert isinstance(encoder, GraphSAGE)
    dense = torch.from_numpy(adjacency(GRAPH))
    mean = dense / dense.sum(1, keepdim=True).clamp(min=1)
    with torch.no_grad():
        x = made.embedding.weight
        hidden = F.gelu(encoder.own[0](x) + encoder.neighbor[0](mean @ x))
        rows = encoder.own[1](hidden) + encoder.neighbor[1](mean @ hidden)
        parts = []
        for tower, part in (
            (made.model.user_tower, rows[: GRAPH.n_users]),
            (made.model.item_tower, rows[GRAPH.n_users :]),
        ):
            assert isinstance(tower, MLPTower)
            parts.append(tower.out(F.gelu(tower.norm[0](tower.linear[0](part)))))
    torch.testing.assert_close(vectors(made, 1 << 30), torch.cat(parts), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("encoder", ["lightgcn", "gcn", "graphsage", "torch_geometric.nn.SAGEConv"])
def test_any_memory_gives_the_same(
    tmp_path: Path, group: WorkerGroup, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one worker has everything, and where rows are fetched."""
    made = trainer(tmp_path, group, f"model.encoder={encoder}")
    whole = vectors(made, 1 << 30)
    width = made.embedding.weight.shape[1] * 8
    sizes: list[int] = []
    layer = made.model.encoder.layer

    def watched(index: int, block: BlockTensors, x: torch.Tensor, step_key: int) -> torch.Tensor:
        sizes.append(block.n_dst)
        return layer(index, block, x, step_key)

    monkeypatch.setattr(made.model.encoder, "layer", watched)
    for memory in (1, 40 * width, 400 * width):
        sizes.clear()
        torch.testing.assert_close(vectors(made, memory), whole, rtol=1e-12, atol=1e-14)
        assert len(sizes) > 2 and sum(sizes) == 2 * GRAPH.n_nodes
    monkeypatch.setattr(inference, "on_host", lambda tensor: False)
    for memory in (1, 40 * width, 400 * width, 1 << 30):
        sizes.clear()
        torch.testing.assert_close(vectors(made, memory), whole, rtol=1e-12, atol=1e-14)
        assert len(sizes) == 2 * len(chunks_by_edges(made.own.degree, max(1, memory // (4 * width))))


@pytest.mark.parametrize("n_parts", [1, 4])
def test_a_rotated_block_has_every_neighbour(n_parts: int) -> None:
    graph, _ = partitioned(*random_edges(0, 30, 20, 90), 30, 20, n_parts)
    for start, stop in ((0, 50), (0, 0), (3, 41), (20, 21), (49, 50)):
        block = rotated_block(graph, graph.degree(np.arange(50)), start, stop)
        n = stop - start
        assert (block.n_dst, block.n_src) == (n, n + 50)
        assert block.degree.tolist() == [len(graph.row(v)) for v in [*range(start, stop), *range(50)]]
        rows = np.split(block.indices, block.indptr[1:-1]) if n else []
        assert [(row - n).tolist() for row in rows] == [graph.row(v).tolist() for v in range(start, stop)]


@pytest.mark.parametrize("encoder", ["lightgcn", "gcn", "graphsage"])
def test_sampled_inference_with_every_neighbour_is_full(tmp_path: Path, group: WorkerGroup, encoder: str) -> None:
    most = int(GRAPH.degree(np.arange(GRAPH.n_nodes)).max())
    made = trainer(tmp_path, group, f"model.encoder={encoder}", "model.tower=mlp", f"sampler.fanout={most},{most}")
    for chunk in (7, 4096):
        sampled = infer_sampled(made.model, made.embedding, made.sampler, made.own, BOUNDS, group, chunk)
        torch.testing.assert_close(sampled, vectors(made, 1 << 30), rtol=1e-10, atol=1e-12)


def test_sampled_inference_with_few_neighbours_is_not(tmp_path: Path, group: WorkerGroup) -> None:
    made = trainer(tmp_path, group, "sampler.fanout=1,1")
    sampled = infer_sampled(made.model, made.embedding, made.sampler, made.own, BOUNDS, group)
    assert (sampled - vectors(made, 1 << 30)).abs().max() > 1e-3


def test_chunks_cover_every_node_once_within_the_budget() -> None:
    degree = np.array([3, 0, 9, 1, 1, 1, 20, 0])
    ranges = chunks_by_edges(degree, 6)
    assert [node for start, stop in ranges for node in range(start, stop)] == list(range(len(degree)))
    assert all(stop - start == 1 or (degree[start:stop] + 1).sum() <= 6 for start, stop in ranges)
    assert len(ranges) == 5


def test_a_scorers_blocks_are_the_items_in_order_and_its_products_those_of_a_gpu(
    tmp_path: Path, group: WorkerGroup
) -> None:
    made = trainer(tmp_path, group)
    users = np.array([5, 0, 9])
    scorer = ModelScorer(vectors(made, 1 << 30), made.own, GRAPH, users, group)
    (items, payload), *others = scorer.item_blocks()
    assert not others and items.tolist() == list(range(GRAPH.n_items))
    assert isinstance(payload, InnerProducts)
    columns = scorer.item_vectors.T.contiguous()
    np.testing.assert_allclose(payload.users @ payload.items.T, scorer.score(0, 3, columns), rtol=1e-12)
    rows = vectors(made, 1 << 30).numpy()
    expected = rows[GRAPH.node_id[users]] @ rows[GRAPH.node_id[GRAPH.n_users :]].T
    np.testing.assert_allclose(scorer.score(0, 3, columns), expected, rtol=1e-12)
