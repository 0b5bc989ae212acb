"""Partitions without regard to edges: for graphs too large for METIS, and as its measure."""

from __future__ import annotations

import numpy as np

from distgnn.kernels.edges import hash_pairs
from distgnn.types import ITEM, USER

_KEY = np.uint64(0x5061727469746E73)  # the assignment is fixed: it changes where rows live, never a result


def assign_randomly(n_users: int, n_items: int, n_parts: int) -> np.ndarray:
    """Deal users, then items, round the partitions in the order of their hashes.

    Partitions differ by at most one user and one item, and none is empty where there are at least as many nodes.

    Returns:
        Partition of every stable user, then of every stable item, int32 `[n_users + n_items]`.
    """
    hashed = np.empty(n_users + n_items, np.uint64)
    node_type = np.repeat(np.array([USER, ITEM], np.uint8), [n_users, n_items])
    stable = np.concatenate([np.arange(n_users), np.arange(n_items)])
    with np.errstate(over="ignore"):
        hash_pairs(_KEY, node_type, stable, hashed)
    order = np.concatenate([np.argsort(hashed[:n_users]), n_users + np.argsort(hashed[n_users:])])
    part = np.empty(n_users + n_items, np.int32)
    part[order] = np.arange(n_users + n_items) % n_parts
    return part
