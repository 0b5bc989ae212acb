"""Encoders with full neighbourhoods are PyG's layers and the dense formulas; PyG layers train by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch_geometric import nn as pyg

from distgnn.distributed.process_group import WorkerGroup
from distgnn.nn.encoders import GCN, GraphSAGE, LightGCN, PyGEncoder, make_encoder
from distgnn.nn.model import GraphRecommender
from distgnn.types import UserError
from tests.small_training import (
    adjacency,
    batch_of,
    edge_index,
    full_block,
    small_config,
    small_graph,
    small_trainer,
)

DIM = 6


@pytest.fixture
def group() -> Iterator[WorkerGroup]:
    group = WorkerGroup.join(0, 1)
    yield group
    group.leave()


def rows(n: int) -> torch.Tensor:
    return torch.randn(n, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_gcn_is_pygs_gcnconv() -> None:
    graph = small_graph()
    x = rows(graph.n_nodes)
    encoder = GCN(DIM, 1, 0.0).double()
    conv = pyg.GCNConv(DIM, DIM).double()
    with torch.no_grad():
        conv.lin.weight.copy_(encoder.linear[0].weight)
        conv.bias.copy_(encoder.linear[0].bias)
    expected = conv(x, edge_index(graph))
    torch.testing.assert_close(encoder([full_block(graph)], x, 0), expected, rtol=1e-10, atol=1e-12)


def test_graphsage_is_pygs_sageconv() -> None:
    graph = small_graph()
    x = rows(graph.n_nodes)
    encoder = GraphSAGE(DIM, 1, 0.0).double()
    conv = pyg.SAGEConv(DIM, DIM).double()
    with torch.no_grad():
        conv.lin_l.weight.copy_(encoder.neighbor[0].weight)
        conv.lin_l.bias.copy_(encoder.own[0].bias)
        conv.lin_r.weight.copy_(encoder.own[0].weight)
    expected = conv(x, edge_index(graph))
    torch.testing.assert_close(encoder([full_block(graph)], x, 0), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["lightgcn", "gcn", "graphsage", "torch_geometric.nn.SAGEConv"])
def test_only_who_says_so_reads_degrees(name: str) -> None:
    graph = small_graph()
    x, block = rows(graph.n_nodes), full_block(graph)
    encoder = make_encoder(name, DIM, 1, 0.0).double()
    others = replace(block, degree=block.degree + 3)
    assert encoder.reads_degrees != torch.equal(encoder([block], x, 0), encoder([others], x, 0))


def test_hidden_layers_are_gelu_and_the_last_is_linear() -> None:
    graph = small_graph()
    x, block = rows(graph.n_nodes), full_block(graph)
    encoder = GraphSAGE(DIM, 2, 0.0).double()
    hidden = torch.nn.functional.gelu(encoder.pre_activation(0, block, x))
    torch.testing.assert_close(encoder([block, block], x, 0), encoder.pre_activation(1, block, hidden))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_lightgcn_is_pygs_and_the_dense_formula(layers: int) -> None:
    graph = small_graph()
    x, block = rows(graph.n_nodes), full_block(graph)
    got = LightGCN(DIM, layers)([block] * layers, x, 0)
    weights = torch.full((layers + 1,), 1 / (layers + 1), dtype=torch.float64)  # PyG rounds a plain number to float32
    model = pyg.LightGCN(graph.n_nodes, DIM, layers, alpha=weights).double()
    with torch.no_grad():
        model.embedding.weight.copy_(x)
        torch.testing.assert_close(got, model.get_embedding(edge_index(graph)), rtol=1e-10, atol=1e-12)
    dense = torch.from_numpy(adjacency(graph))
    root = dense.sum(1).clamp(min=1).rsqrt()
    step = root[:, None] * dense * root[None, :]
    expected = sum(torch.linalg.matrix_power(step, power) @ x for power in range(layers + 1)) / (layers + 1)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["lightgcn", "gcn", "graphsage"])
def test_nodes_without_edges_stay_finite(name: str) -> None:
    graph = small_graph()
    alone = graph.n_users - 1
    assert graph.degree([alone])[0] == 0
    out = make_encoder(name, DIM, 2, 0.0).double()([full_block(graph)] * 2, rows(graph.n_nodes), 0)
    assert torch.isfinite(out).all()
    if name == "lightgcn":
        torch.testing.assert_close(out[alone], rows(graph.n_nodes)[alone] / 3)


@pytest.mark.parametrize("name", ["torch_geometric.nn.SAGEConv", "torch_geometric.nn.GATConv"])
def test_a_pyg_layer_trains_by_name(name: str, tmp_path: Path, group: WorkerGroup) -> None:
    config = small_config(f"model.encoder={name}", "optim.name=adam", "optim.lr=0.02", "train.batch_size=64")
    trainer = small_trainer(config, tmp_path, small_graph(), group)
    assert isinstance(trainer.model, GraphRecommender) and isinstance(trainer.model.encoder, PyGEncoder)
    before = {k: v.clone() for k, v in trainer.model.named_parameters()}
    batch = batch_of(trainer, 0)
    losses = [trainer.train_step(batch).item() for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]
    moved = [k for k, v in trainer.model.named_parameters() if not torch.equal(v, before[k])]
    assert len(moved) >= len(before) - 2  # a last bias may cancel out of the softmax
    assert torch.isfinite(trainer.vectors()).all()


def test_a_pyg_layer_sees_the_blocks_edges() -> None:
    graph = small_graph()
    x = rows(graph.n_nodes)
    encoder = make_encoder("torch_geometric.nn.SAGEConv", DIM, 1, 0.0).double()
    assert isinstance(encoder, PyGEncoder)
    torch.testing.assert_close(encoder([full_block(graph)], x, 0), encoder.conv[0](x, edge_index(graph)))


@pytest.mark.parametrize(
    "name",
    [
        "torch_geometric.nn.NoSuchConv",
        "no_such_module_anywhere.Conv",
        "torch_geometric.nn.GCNConv",  # one kind of node alone
        "torch.nn.Linear",
        "json.dumps",
        ".SAGEConv",
    ],
)
def test_a_wrong_name_is_refused_in_words(name: str) -> None:
    with pytest.raises(UserError, match="is not a bipartite PyG layer") as error:
        make_encoder(name, DIM, 1, 0.0)
    assert repr(name) in str(error.value)
