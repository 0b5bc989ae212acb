"""Encoders on nested blocks: one `layer` a hop, and a `readout` of all layers' states.

The same `layer` runs on sampled blocks in training and on full-neighbour blocks in inference. Sums are scaled by
degree / (number drawn), so that a row keeps the weight that inference gives it; users and items share the weights.
Hidden layers use GELU: at ReLU's kink a rounding difference flips a unit's whole gradient, and float32 runs on
different numbers of workers would drift apart.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import nn

from distgnn.nn.aggregation import inverse_or_zero, neighbor_sum, neighbor_sum_and_own
from distgnn.nn.batch import BlockTensors
from distgnn.nn.dropout import KeyedDropout
from distgnn.nn.linear import Linear
from distgnn.types import UserError


class Encoder(nn.Module, ABC):
    """Base of all encoders.

    Attributes:
        n_layers: L. out_dim: width of the readout. row_per_edge: whether a layer holds a row for each edge on a CPU.
        reads_degrees: whether a layer reads `block.degree`; where none does, the sampler need not count them all.
    """

    n_layers: int
    out_dim: int
    row_per_edge = False
    reads_degrees = True

    @abstractmethod
    def layer(self, index: int, block: BlockTensors, x: torch.Tensor, step_key: int) -> torch.Tensor:
        """States of the destinations `[n_dst, d']` from those of the sources `[n_src, d]`."""

    def readout(self, states: list[torch.Tensor]) -> torch.Tensor:
        """`[n, out_dim]` from the L + 1 states of the same n nodes."""
        return states[-1]

    def forward(self, blocks: list[BlockTensors], x: torch.Tensor, step_key: int) -> torch.Tensor:
        """Seeds' rows `[F_0, out_dim]` from the input rows `[F_L, d]`."""
        states = [x]
        for index in range(self.n_layers):
            states.append(self.layer(index, blocks[self.n_layers - 1 - index], states[-1], step_key))
        return self.readout([state[: blocks[0].n_dst] for state in states])


class LightGCN(Encoder):
    """Symmetric-normalised propagation without weights, mean of all layers (He et al. 2020, eq. 3, 4, 8)."""

    def __init__(self, dim: int, n_layers: int) -> None:
        super().__init__()
        self.n_layers = n_layers
        self.out_dim = dim

    def layer(self, index: int, block: BlockTensors, x: torch.Tensor, step_key: int) -> torch.Tensor:
        return neighbor_sum(x, *self._scales(block), block)

    def forward(self, blocks: list[BlockTensors], x: torch.Tensor, step_key: int) -> torch.Tensor:
        """As of any encoder; each layer gives the seeds' rows of what it reads."""
        seeds = []
        for block in reversed(blocks):
            x, own = neighbor_sum_and_own(x, *self._scales(block), block, blocks[0].n_dst)
            seeds.append(own)
        return self.readout([*seeds, x])

    @staticmethod
    def _scales(block: BlockTensors) -> tuple[torch.Tensor, torch.Tensor]:
        root = block.degree.sqrt()
        return inverse_or_zero_root(root), root[: block.n_dst] * inverse_or_zero(block.drawn)

    def readout(self, states: list[torch.Tensor]) -> torch.Tensor:
        total = states[0]
        for state in states[1:]:
            total = total + state
        return total / len(states)


def inverse_or_zero_root(root: torch.Tensor) -> torch.Tensor:
    """1 / sqrt(degree), and 0 for isolated nodes."""
    return torch.where(root > 0, 1.0 / root.clamp(min=1), torch.zeros_like(root))


class NonlinearEncoder(Encoder):
    """Layers of one width with GELU and dropout between them; the last one stays linear."""

    def __init__(self, dim: int, n_layers: int, dropout: float) -> None:
        super().__init__()
        self.n_layers = n_layers
        self.out_dim = dim
        self.dropout = nn.ModuleList(KeyedDropout(dropout, site) for site in range(n_layers))

    @abstractmethod
    def pre_activation(self, index: int, block: BlockTensors, x: torch.Tensor) -> torch.Tensor:
        """`[n_dst, dim]`, before GELU and dropout."""

    def layer(self, index: int, block: BlockTensors, x: torch.Tensor, step_key: int) -> torch.Tensor:
        hidden = self.pre_activation(index, block, x)
        if index == self.n_layers - 1:
            return hidden
        result: torch.Tensor = self.dropout[index](F.gelu(hidden), block.node_key[: block.n_dst], step_key)
        return result


class GCN(NonlinearEncoder):
    """Graph convolution with self-loops (Kipf and Welling 2017, eq. 2): degrees count the loop."""

    def __init__(self, dim: int, n_layers: int, dropout: float) -> None:
        super().__init__(dim, n_layers, dropout)
        self.linear = nn.ModuleList(Linear(dim, dim) for _ in range(n_layers))

    def pre_activation(self, index: int, block: BlockTensors, x: torch.Tensor) -> torch.Tensor:
        """Linear map of the normalised sum, before GELU and dropout."""
        source = (block.degree + 1).rsqrt()
        own = source[: block.n_dst]
        weight = block.degree[: block.n_dst] * inverse_or_zero(block.drawn)
        summed, x_own = neighbor_sum_and_own(x, source, own * weight, block, block.n_dst)
        result: torch.Tensor = self.linear[index](summed + x_own * (own * own)[:, None])
        return result


class GraphSAGE(NonlinearEncoder):
    """GraphSAGE with the mean aggregator (Hamilton et al. 2017, algorithm 1): W_self x_i + W_neighbour mean x_j."""

    reads_degrees = False

    def __init__(self, dim: int, n_layers: int, dropout: float) -> None:
        super().__init__(dim, n_layers, dropout)
        self.own = nn.ModuleList(Linear(dim, dim) for _ in range(n_layers))
        self.neighbor = nn.ModuleList(Linear(dim, dim, bias=False) for _ in range(n_layers))

    def pre_activation(self, index: int, block: BlockTensors, x: torch.Tensor) -> torch.Tensor:
        """Sum of both linear maps, before GELU and dropout."""
        ones, mean_scale = torch.ones_like(block.degree), inverse_or_zero(block.drawn)
        mean, x_own = neighbor_sum_and_own(x, ones, mean_scale, block, block.n_dst)
        return self.own[index](x_own) + self.neighbor[index](mean)


class PyGEncoder(NonlinearEncoder):
    """Any bipartite-capable PyG layer, called as `conv((x_src, x_dst), edge_index)`.

    Layers that normalise by the sampled degree see the sampled graph: sums are not rescaled for them.
    """

    row_per_edge = True
    reads_degrees = False

    def __init__(self, layer_class: type[nn.Module], dim: int, n_layers: int, dropout: float) -> None:
        super().__init__(dim, n_layers, dropout)
        self.conv = nn.ModuleList(layer_class((dim, dim), dim) for _ in range(n_layers))

    def pre_activation(self, index: int, block: BlockTensors, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, before GELU and dropout."""
        result: torch.Tensor = self.conv[index]((x, x[: block.n_dst]), block.edge_index())
        return result


def make_encoder(name: str, dim: int, n_layers: int, dropout: float) -> Encoder:
    """lightgcn, gcn, graphsage, or the dotted name of a PyG layer class.

    Raises:
        UserError: the dotted name is not a layer that takes (x_src, x_dst).
    """
    if name == "lightgcn":
        return LightGCN(dim, n_layers)
    if name == "gcn":
        return GCN(dim, n_layers, dropout)
    if name == "graphsage":
        return GraphSAGE(dim, n_layers, dropout)
    module, _, attribute = name.rpartition(".")
    try:
        layer_class = getattr(importlib.import_module(module), attribute)
        return PyGEncoder(layer_class, dim, n_layers, dropout)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"config: model.encoder = {name!r} is not a bipartite PyG layer ({error}); use lightgcn, gcn, graphsage "
            "or the dotted name of a class built as Layer((d, d), d), such as torch_geometric.nn.SAGEConv"
        ) from error
