"""A minibatch's blocks as tensors on the worker's device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from distgnn.distributed.device_memory import RowBuffer, move
from distgnn.kernels.rng import STREAM_DROPOUT, combine, hash2, keys_of_nodes
from distgnn.types import Block, MiniBatch

NO_KEYS = np.empty(0, np.int64)


@dataclass(frozen=True)
class BlockTensors:
    """One bipartite layer.

    Attributes:
        n_dst, n_src: destinations are the first n_dst sources.
        indptr: int64 `[n_dst + 1]`. indices: int32 `[e]`, local sources.
        degree: `[n_src]`, as in `distgnn.types.Block`, in the model's dtype.
        drawn: `[n_dst]`, edges drawn a destination, in the model's dtype.
        node_key: uint64 bits as int64 `[n_src]`, hash of (type, stable id), which dropout goes by; `[0]` where there is
            none.
        gradients: memory for the gradient of the source rows, on the CPU; None: new memory. With it, the gradient is to
            be read before the next backward through such a block.
    """

    n_dst: int
    n_src: int
    indptr: torch.Tensor
    indices: torch.Tensor
    degree: torch.Tensor
    drawn: torch.Tensor
    node_key: torch.Tensor
    gradients: RowBuffer | None = None

    def edge_index(self) -> torch.Tensor:
        """int64 `[2, e]` of (local source, local destination), PyG's convention."""
        return torch.stack([self.indices.long(), destinations(self.indptr, self.indices)])

    def tensors(self) -> Iterator[torch.Tensor]:
        """All of them."""
        yield from (self.indptr, self.indices, self.degree, self.drawn, self.node_key)


def entry_index(batch: MiniBatch, device: torch.device) -> torch.Tensor | None:
    """Row among the distinct nodes of each entry of F_L, int64 `[F_L]`; None where entries are nodes."""
    return None if batch.entry_row is None else move(torch.from_numpy(batch.entry_row), device)


def row_types(batch: MiniBatch) -> np.ndarray:
    """Types of the distinct nodes, uint8 `[n]`."""
    if batch.entry_row is None:
        return batch.node_type
    result = np.empty(len(batch.nodes), np.uint8)
    result[batch.entry_row] = batch.node_type
    return result


def destinations(indptr: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Local destination of every edge, int64 `[e]`; its length is given, or a GPU would be waited for to know it."""
    return torch.repeat_interleave(indptr.diff(), output_size=len(indices))


def node_keys(node_type: np.ndarray, stable_id: np.ndarray) -> np.ndarray:
    """uint64 `[n]` keys of (type, stable id), as int64 bits."""
    keys = np.empty(len(stable_id), np.uint64)
    keys_of_nodes(node_type, stable_id, keys)
    return keys.view(np.int64)


def dropout_key(seed: int, step: int) -> int:
    """uint64 key of a step's dropout masks."""
    return int(combine(np.uint64(hash2(np.uint64(seed), STREAM_DROPOUT)), np.uint64(step)))


def block_tensors(
    blocks: list[Block],
    keys: np.ndarray,
    device: torch.device,
    dtype: torch.dtype,
    gradients: RowBuffer | None = None,
) -> list[BlockTensors]:
    """Copy to the device (asynchronous, on the current stream; on the CPU they are views of the arrays).

    Args:
        keys: of the sources (see `node_keys`), or `NO_KEYS` where no dropout is active.
        gradients: of the last block, which takes the input rows.
    """
    node_key = move(torch.from_numpy(keys), device)
    # Converted by NumPy, in this thread: torch would use all cores, on which sampling threads are at work.
    floating = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
    result = []
    for block in blocks:
        result.append(
            BlockTensors(
                n_dst=block.n_dst,
                n_src=block.n_src,
                indptr=move(torch.from_numpy(block.indptr), device),
                indices=move(torch.from_numpy(block.indices), device),
                degree=move(torch.from_numpy(block.degree.astype(floating)), device),
                drawn=move(torch.from_numpy(np.diff(block.indptr).astype(floating)), device),
                node_key=node_key[: block.n_src],
                gradients=gradients if block is blocks[-1] else None,
            )
        )
    return result
