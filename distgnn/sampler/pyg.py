"""A minibatch in PyG's own terms."""

from __future__ import annotations

import numpy as np
import torch

from distgnn.types import MiniBatch


def to_pyg_adjacencies(minibatch: MiniBatch) -> tuple[torch.Tensor, list[tuple[torch.Tensor, tuple[int, int]]]]:
    """(n_id, [(edge_index, (n_src, n_dst)), ...]) in the order in which layers consume them.

    n_id is int64 `[F_L]`, with time-respecting sampling a node once for each cut-off; edge_index int64 `[2, e]` of
    (local source, local destination), for any bipartite `MessagePassing` layer called as
    `conv((x, x[:n_dst]), edge_index)`.
    """
    adjacencies = []
    for block in reversed(minibatch.blocks):
        destination = torch.repeat_interleave(torch.from_numpy(block.indptr).diff())
        source = torch.from_numpy(block.indices).long()
        adjacencies.append((torch.stack([source, destination]), (block.n_src, block.n_dst)))
    return torch.from_numpy(minibatch.node_of(np.arange(minibatch.blocks[-1].n_src))), adjacencies
