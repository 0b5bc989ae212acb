"""The distinct edges of one or several logs, in stable ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distgnn.kernels.edges import place_by_group

TRAIN, VALID, TEST = 0, 1, 2


@dataclass(frozen=True)
class Interactions:
    """Distinct edges, ordered by (user, item).

    Attributes:
        user, item: stable ids, integer `[E]`.
        timestamp: of the earliest event of each edge, int64 `[E]`, or None.
        weight: sum over the events of each edge, float32 `[E]`, or None.
    """

    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray | None = None
    weight: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.user)

    def select(self, where: np.ndarray) -> Interactions:
        """The edges at a mask or ascending positions."""
        return Interactions(
            self.user[where],
            self.item[where],
            None if self.timestamp is None else self.timestamp[where],
            None if self.weight is None else self.weight[where],
        )


def group_order(group: np.ndarray, n_groups: int, order: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Stable order of elements by group: a counting sort.

    Args:
        group: integer `[E]` in [0, n_groups).
        n_groups: number of groups.
        order: integer `[E]`, how ties stand; None: as they are.

    Returns:
        Offsets int64 `[n_groups + 1]` of the groups, and the elements in order, int32 or int64 `[E]`.
    """
    offsets = np.zeros(n_groups + 1, np.int64)
    np.cumsum(np.bincount(group, minlength=n_groups), out=offsets[1:])
    dtype = np.int32 if len(group) < 2**31 else np.int64
    out = np.empty(len(group), dtype)
    place_by_group(group, np.empty(0, dtype) if order is None else order, offsets[:-1].copy(), out)
    return offsets, out


@dataclass(frozen=True)
class Deduplicated:
    """What `deduplicate` gives.

    Attributes:
        edges: the distinct edges.
        source: log that each edge was taken from, int8 `[E]`.
        first_row: row of the first event of each edge, integer `[E]`.
        duplicates: events of the same edge in the same log beyond the first.
        dropped: of each log, edges that an earlier log has too.
    """

    edges: Interactions
    source: np.ndarray
    first_row: np.ndarray
    duplicates: int
    dropped: list[int]


def deduplicate(
    user: np.ndarray,
    item: np.ndarray,
    timestamp: np.ndarray | None,
    weight: np.ndarray | None,
    n_users: int,
    n_items: int,
    log_rows: list[int],
) -> Deduplicated:
    """Keep every (user, item) once: the earliest timestamp, the sum of the weights.

    An edge that stands in several logs belongs to the first of them, with that log's events alone.

    Args:
        user: stable users, integer `[rows]`, the logs one after the other.
        item: stable items, integer `[rows]`.
        timestamp: int64 `[rows]`, or None.
        weight: float32 `[rows]`, or None.
        n_users: number of stable users.
        n_items: number of stable items.
        log_rows: rows of each log; at most 8 logs.
    """
    _, order = group_order(user, n_users, group_order(item, n_items)[1])
    starts = _starts(user[order], item[order])
    log = np.repeat(np.arange(len(log_rows), dtype=np.int8), log_rows)[order]
    first_row, source = order[starts], log[starts]
    if len(log_rows) == 1:
        duplicates, dropped = len(order) - len(starts), [0]
    else:
        logs_of_edge = np.bitwise_or.reduceat(np.left_shift(np.uint8(1), log.astype(np.uint8)), starts)
        stands = [(logs_of_edge >> np.uint8(k)) & np.uint8(1) == 1 for k in range(len(log_rows))]
        duplicates = len(order) - sum(int(mask.sum()) for mask in stands)
        dropped = [int((mask & (source != k)).sum()) for k, mask in enumerate(stands)]
        own = log == np.repeat(source, np.diff(starts, append=len(order)))
        order = order[own]
        starts = _starts(user[order], item[order])
    edges = Interactions(
        user[first_row],
        item[first_row],
        None if timestamp is None else np.minimum.reduceat(timestamp[order], starts),
        None if weight is None else np.add.reduceat(weight[order], starts, dtype=np.float64).astype(np.float32),
    )
    return Deduplicated(edges, source, first_row, duplicates, dropped)


def _starts(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Positions where a new pair begins, of pairs sorted."""
    new = np.ones(len(user), bool)
    np.logical_or(user[1:] != user[:-1], item[1:] != item[:-1], out=new[1:])
    return np.flatnonzero(new)
