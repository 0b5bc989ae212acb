"""METIS (Karypis and Kumar 1998) through pymetis: few edges between partitions, alike in weight."""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np

from distgnn.types import UserError

# Measured over random graphs of .5 to 22 million edges (the hardest to coarsen), besides the adjacency handed over.
_BYTES_AN_EDGE = 240
_BYTES_A_NODE = 300
_ADJACENCY_BYTES = 16  # an edge, both directions, int64
_LARGEST_TOTAL_WEIGHT = 2**30  # safe also where METIS was built with 32-bit integers
_SEED = 0  # fixed: a partition changes where rows live, never a result


def metis_bytes(n_nodes: int, n_edges: int) -> int:
    """Estimated peak memory of `assign_by_metis` beyond its arguments, in bytes."""
    return n_edges * (_BYTES_AN_EDGE + _ADJACENCY_BYTES) + n_nodes * _BYTES_A_NODE


def node_weights(degree: np.ndarray, balance: str) -> np.ndarray:
    """What METIS balances, int64 `[N]`: every node 1 (`nodes`), its degree (`edges`), or the mean of both (`both`)."""
    if balance == "nodes":
        return np.ones(len(degree), np.int64)
    if balance == "edges":
        return degree.astype(np.int64)
    return whole_weights(1.0 + degree / max(degree.mean(), 1e-9))


def whole_weights(weight: np.ndarray) -> np.ndarray:
    """Weights float64 `[N]` as METIS takes them: int64 in proportion, at least 1, of about 1,000 each on average."""
    resolution = max(min(1000, _LARGEST_TOTAL_WEIGHT // len(weight)), 2)
    relative = weight / max(weight.mean(), 1e-300)
    return np.maximum(np.rint(resolution * relative), 1).astype(np.int64)


def require_pymetis() -> None:
    """Refuse METIS in words where pymetis is not installed.

    Raises:
        UserError: it is not.
    """
    try:
        import pymetis  # noqa: F401
    except ImportError as error:
        machine = platform.machine()
        reason = (
            f"pymetis has no wheel for {machine}"
            if machine == "aarch64"
            else f"pymetis can't be loaded ({error}); install it"
        )
        raise UserError(f"partition.method = 'metis': {reason}; or set partition.method = random") from error


def assign_by_metis(
    user_offsets: np.ndarray,
    item: np.ndarray,
    item_offsets: np.ndarray,
    user_by_item: np.ndarray,
    n_parts: int,
    weights: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Partition the graph.

    Args:
        user_offsets: int64 `[n_users + 1]`, offsets of the users' rows.
        item: integer `[E]`, stable items of the users' rows.
        item_offsets: int64 `[n_items + 1]`, offsets of the items' rows.
        user_by_item: integer `[E]`, stable users of the items' rows.
        n_parts: number of partitions.
        weights: of the nodes, int64 `[N]` with a sum below 2^31, from offsets int64 `[N + 1]` and neighbours int64
            `[2 E]` of users, then items (whose ids go on after the users').

    Returns:
        Partition of every stable user, then of every stable item, int32 `[N]`; none is empty.

    Raises:
        UserError: pymetis is not installed.
    """
    n_users, n_edges = len(user_offsets) - 1, len(item)
    if n_parts == 1:
        return np.zeros(n_users + len(item_offsets) - 1, np.int32)
    require_pymetis()
    import pymetis

    starts = np.concatenate([user_offsets, n_edges + item_offsets[1:]])
    adjacent = np.empty(2 * n_edges, np.int64)
    np.add(item, n_users, out=adjacent[:n_edges])
    adjacent[n_edges:] = user_by_item
    degree = np.diff(starts)
    _, part = pymetis.part_graph(
        n_parts,
        pymetis.CSRAdjacency(starts, adjacent),
        vweights=weights(starts, adjacent),
        options=pymetis.Options(seed=_SEED),
    )
    return fill_empty_parts(np.array(part, np.int32), degree, n_parts)


def fill_empty_parts(part: np.ndarray, degree: np.ndarray, n_parts: int) -> np.ndarray:
    """Move a node of the smallest degree from the largest partition into each empty one.

    Args:
        part: int32 `[N]`, N >= n_parts.
        degree: int64 `[N]`.
        n_parts: number of partitions.
    """
    size = np.bincount(part, minlength=n_parts)
    for empty in np.flatnonzero(size == 0):
        members = np.flatnonzero(part == size.argmax())
        size[size.argmax()] -= 1
        size[empty] += 1
        part[members[degree[members].argmin()]] = empty
    return part
