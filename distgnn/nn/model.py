"""Encoder and towers: input rows in, user and item vectors out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from distgnn.config import ModelConfig
from distgnn.distributed.features import NodeFeatures
from distgnn.nn.batch import BlockTensors
from distgnn.nn.encoders import make_encoder
from distgnn.nn.features import FeatureProjection
from distgnn.nn.linear import multiply_in
from distgnn.nn.towers import make_tower


class GraphRecommender(nn.Module):
    """The dense part of a teacher; the embedding rows live sharded outside of it.

    Args:
        config: of the model. n_layers: L, one a hop.
        features: width of the features by role, `user` and `item`, where nodes have any.
    """

    def __init__(self, config: ModelConfig, n_layers: int, features: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.encoder = make_encoder(config.encoder, config.dim, n_layers, config.dropout)
        self.out_dim = config.tower_out or config.dim
        if config.tower == "identity":
            self.out_dim = self.encoder.out_dim
        towers = [
            make_tower(config.tower, self.encoder.out_dim, config.tower_hidden, self.out_dim, config.dropout, i)
            for i in (0, 1)
        ]
        self.user_tower, self.item_tower = towers
        # Made last: the other parameters start alike with and without features.
        self.projection = FeatureProjection(features, config.dim, config.init_std) if features else None
        if config.matmul == "bfloat16":
            multiply_in(self, torch.bfloat16)

    def input_rows(self, x: torch.Tensor, features: NodeFeatures | None) -> torch.Tensor:
        """What the encoder starts from: embedding rows `[n, d]` and what the nodes' features add to them."""
        if self.projection is None or features is None:
            return x
        result: torch.Tensor = self.projection(x, features)
        return result

    def towers(
        self, rows: torch.Tensor, n_users: int, node_key: torch.Tensor, step_key: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """User vectors `[n_users, d]` and item vectors `[n - n_users, d]` from encoder rows, users first."""
        user = self.user_tower(rows[:n_users], node_key[:n_users], step_key)
        item = self.item_tower(rows[n_users:], node_key[n_users : len(rows)], step_key)
        return user, item

    def forward(
        self,
        blocks: list[BlockTensors],
        x: torch.Tensor,
        n_seed_users: int,
        step_key: int,
        features: NodeFeatures | None = None,
        entries: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of the seed users and the seed items.

        Args:
            x: embedding rows of the distinct nodes `[n, d]`. features: of the same nodes.
            entries: row of each entry of F_L, int64 `[F_L]`; None: the nodes are the entries.
        """
        rows = self.input_rows(x, features)
        if entries is not None:
            rows = rows.index_select(0, entries)
        rows = self.encoder(blocks, rows, step_key)
        return self.towers(rows, n_seed_users, blocks[0].node_key, step_key)
