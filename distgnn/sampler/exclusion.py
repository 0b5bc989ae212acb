"""Target edges of a step as sorted positions to leave out of their endpoints' rows."""

from __future__ import annotations

import numpy as np

from distgnn.graph import Topology
from distgnn.kernels.neighbor_sampling import target_positions
from distgnn.kernels.temporal_sampling import rank_excluded


def excluded_positions(
    topology: Topology, user: np.ndarray, item: np.ndarray, user_position: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both directions of the target edges, grouped by endpoint.

    Args:
        topology: where an item's row is not held, its positions are given as 0; their number is right.
        user, item: node ids, int64 `[B]`. user_position: position of the item in the user's row, int64 `[B]`.

    Returns:
        nodes int64 `[n]` (distinct endpoints), indptr int64 `[n + 1]`, positions int64 `[2 B]`, sorted within a node.
    """
    held = topology.holds(item)
    found = np.empty(int(held.sum()), np.int64)
    target_positions(user[held], item[held], *topology.csc, topology.stable_id, found)
    item_position = np.zeros(len(item), np.int64)
    item_position[held] = found
    node = np.concatenate([user, item])
    position = np.concatenate([user_position, item_position])
    assert (position >= 0).all(), "a target edge is not in the graph"
    order = np.lexsort((position, node))
    node = node[order]
    starts = np.flatnonzero(np.concatenate([[True], node[1:] != node[:-1]])) if len(node) else np.empty(0, np.int64)
    return node[starts], np.append(starts, len(node)).astype(np.int64), position[order]


def excluded_ranks(topology: Topology, nodes: np.ndarray, indptr: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Places of excluded positions in their rows' order by time, int64 `[2 B]`, sorted within a node.

    Args:
        nodes, indptr, positions: of `excluded_positions`; where a row is not held its positions stay as they are.
    """
    ranks = positions.copy()
    held = np.flatnonzero(topology.holds(nodes))
    rank_excluded(held, nodes, indptr, ranks, *topology.csc, *topology.times)
    return ranks
