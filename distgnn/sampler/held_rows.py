"""Draws from the rows that are held in this process: the kernels with their arrays allocated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distgnn.graph import Topology
from distgnn.kernels.neighbor_sampling import draw_rows
from distgnn.kernels.temporal_sampling import count_rows_until, draw_rows_until
from distgnn.kernels.weighted_sampling import draw_rows_by_weight


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A step's target edges, as the kernels take them.

    Attributes:
        row: int32 `[N]`, row in indptr of an endpoint, else -1.
        indptr: int64. positions: int64, sorted within a row: positions in the endpoint's row, or with cut-offs places
            in its order by time; where a row is not held only their number counts.
        filter: uint64, rules most other nodes out (see `may_be_endpoint`).
    """

    row: np.ndarray
    indptr: np.ndarray
    positions: np.ndarray
    filter: np.ndarray


def draw_held(
    topology: Topology,
    nodes: np.ndarray,
    fanout: int,
    hop_key: np.uint64,
    exclusion: Exclusion,
    by_weight: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours drawn for nodes int64 `[n]`: int64 `[n + 1]` and node ids, integer.

    See `draw_rows`, and for draws by weight `draw_rows_by_weight`.
    """
    indptr = np.zeros(len(nodes) + 1, np.int64)
    neighbors = np.empty(len(nodes) * fanout, topology.like_indices.dtype)
    draw, tables = (draw_rows_by_weight, topology.weights) if by_weight else (draw_rows, ())
    draw(
        nodes,
        fanout,
        hop_key,
        *topology.csc,
        *tables,
        topology.stable_id,
        exclusion.row,
        exclusion.indptr,
        exclusion.positions,
        indptr,
        neighbors,
    )
    return indptr, neighbors[: indptr[-1]]


def draw_held_until(
    topology: Topology, nodes: np.ndarray, cutoff: np.ndarray, fanout: int, hop_key: np.uint64, exclusion: Exclusion
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours drawn for (node, cut-off) entries: int64 `[n + 1]`, node ids, and degrees int64 `[n]`.

    See `draw_rows_until`.
    """
    indptr = np.zeros(len(nodes) + 1, np.int64)
    neighbors = np.empty(len(nodes) * fanout, topology.like_indices.dtype)
    degree = np.empty(len(nodes), np.int64)
    draw_rows_until(
        nodes,
        cutoff,
        fanout,
        hop_key,
        *topology.csc,
        *topology.times,
        topology.stable_id,
        exclusion.row,
        exclusion.indptr,
        exclusion.positions,
        exclusion.filter,
        indptr,
        neighbors,
        degree,
    )
    return indptr, neighbors[: indptr[-1]], degree


def count_held_until(topology: Topology, nodes: np.ndarray, cutoff: np.ndarray, exclusion: Exclusion) -> np.ndarray:
    """The degrees alone of (node, cut-off) entries, int64 `[n]`."""
    degree = np.empty(len(nodes), np.int64)
    count_rows_until(
        nodes,
        cutoff,
        *topology.csc,
        *topology.times,
        exclusion.row,
        exclusion.indptr,
        exclusion.positions,
        exclusion.filter,
        degree,
    )
    return degree
