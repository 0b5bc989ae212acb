"""Mistakes that distributed training is prone to, made on purpose: the matrix has to see each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from distgnn.sampler import held_rows, neighbor
from distgnn.training import trainer


def _key_by_node_id() -> None:
    """The draw's key uses the node id, which depends on the partitioning."""
    original = held_rows.draw_rows

    def broken(nodes: np.ndarray, fanout: int, key: np.uint64, *arrays: Any) -> None:
        *csc, stable_id, row, indptr, positions, drawn_indptr, drawn = arrays
        node_id = np.arange(len(stable_id), dtype=stable_id.dtype)
        original(nodes, fanout, key, *csc, node_id, row, indptr, positions, drawn_indptr, drawn)

    held_rows.draw_rows = broken


def _factor_of_workers() -> None:
    """The loss is multiplied by W, as with averaged gradients."""
    original = trainer.loss_of

    def broken(*arguments: Any) -> torch.Tensor:
        return original(*arguments) * arguments[5].size

    trainer.loss_of = broken


def _exclusion_of_the_share() -> None:
    """The sampler leaves out the target edges of the share, not of the global step."""
    original = neighbor.NeighborSampler._expand

    def broken(self: Any, scratch: Any, frontier: Any, step: int, targets: Any) -> Any:
        if targets is not None:
            targets = dataclasses.replace(
                targets,
                global_user=targets.user,
                global_item=targets.item,
                global_user_position=targets.global_user_position[targets.share],
            )
        return original(self, scratch, frontier, step, targets)

    neighbor.NeighborSampler._expand = broken  # type: ignore[method-assign]


def _negatives_by_position() -> None:
    """A negative's key has the edge's position in the share."""
    original = neighbor.uniform_negatives

    def broken(user: np.ndarray, item: np.ndarray, key: np.uint64, *arrays: Any) -> None:
        *graph, drawn = arrays
        for row in range(len(user)):
            one = slice(row, row + 1)
            original(user[one], item[one], key ^ np.uint64(row), *graph, drawn[one])

    neighbor.uniform_negatives = broken


BREAKS: dict[str, Callable[[], None]] = {
    "draw keyed by node id": _key_by_node_id,
    "factor W in the loss": _factor_of_workers,
    "exclusion of the share": _exclusion_of_the_share,
    "negatives keyed by position": _negatives_by_position,
}


def apply(name: str) -> None:
    """Make a mistake in this process."""
    BREAKS[name]()
