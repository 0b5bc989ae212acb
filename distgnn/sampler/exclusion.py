"""Target edges of a step as sorted positions to leave out of their endpoints' rows."""

from __future__ import annotations

import numpy as np

from distgnn.graph import Topology
from distgnn.kernels.target_edges import endpoint_filter, group_by_endpoint, target_positions
from distgnn.kernels.temporal_sampling import rank_excluded
from distgnn.sampler.held_rows import Exclusion


def exclude(
    topology: Topology,
    row: np.ndarray,
    user: np.ndarray,
    item: np.ndarray,
    user_position: np.ndarray,
    by_time: bool,
) -> tuple[np.ndarray, Exclusion]:
    """Both directions of the target edges, grouped by endpoint.

    Args:
        topology: where an item's row is not held, its positions are given as 0; their number is right. Places of a row
            that is not held stay positions.
        row: int32 `[N]`, -1 everywhere; written: the group of each endpoint.
        user, item: node ids, int64 `[B]`. user_position: position of the item in the user's row, int64 `[B]`.
        by_time: give places in the rows' order by time.

    Returns:
        The distinct endpoints int64 `[n]`, whose entries of `row` are to be set back, and what the kernels take.
    """
    size = len(user)
    item_position = _positions(topology, user, item)
    assert (item_position >= 0).all(), "a target edge is not in the graph"
    nodes, positions = np.empty((2, 2 * size), np.int64)
    indptr = np.empty(2 * size + 1, np.int64)
    n = group_by_endpoint(user, item, user_position, item_position, row, nodes, indptr, positions)
    nodes, indptr = nodes[:n], indptr[: n + 1]
    if by_time:
        held = np.arange(n) if topology.holds_all else np.flatnonzero(topology.holds(nodes))
        rank_excluded(held, nodes, indptr, positions, *topology.csc, *topology.times)
    return nodes, Exclusion(row, indptr, positions, endpoint_filter(nodes))


def _positions(topology: Topology, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Positions of the users in the items' rows, int64 `[B]`; 0 where the row is not held."""
    position = np.zeros(len(item), np.int64)
    if topology.holds_all:
        target_positions(user, item, *topology.csc, topology.stable_id, position)
        return position
    held = topology.holds(item)
    found = np.empty(int(held.sum()), np.int64)
    target_positions(user[held], item[held], *topology.csc, topology.stable_id, found)
    position[held] = found
    return position
