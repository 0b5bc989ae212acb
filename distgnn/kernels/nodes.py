"""What is known of nodes: one read from memory for each, asked for some nodes before its turn."""

from __future__ import annotations

from numba import njit

from distgnn.kernels.address import AHEAD, part_of, prefetch


@njit(nogil=True, cache=True)
def describe_nodes(nodes, offsets, facts, node_type, stable, degree):
    """Type (uint8), stable id (int64) and degree (int64) of nodes int64 `[n]`.

    Args:
        offsets: int64 `[P, 3]` (user start, item start, end). facts: integer `[N, 2]`, stable id and degree.
    """
    n = nodes.shape[0]
    address = facts.ctypes.data
    for i in range(n):
        if i + AHEAD < n:
            prefetch(address + nodes[i + AHEAD] * 2 * facts.itemsize)
        node = nodes[i]
        node_type[i] = 1 if node >= offsets[part_of(node, offsets), 1] else 0
        stable[i] = facts[node, 0]
        degree[i] = facts[node, 1]


@njit(nogil=True, cache=True)
def describe_entries(nodes, number, cutoffs, offsets, facts, node_type, stable, cutoff):
    """As `describe_nodes`, of entries without their degrees: also their cut-offs int64 `[n]`, cutoffs[number]."""
    n = nodes.shape[0]
    address = facts.ctypes.data
    for i in range(n):
        if i + AHEAD < n:
            prefetch(address + nodes[i + AHEAD] * 2 * facts.itemsize)
        node = nodes[i]
        node_type[i] = 1 if node >= offsets[part_of(node, offsets), 1] else 0
        stable[i] = facts[node, 0]
        cutoff[i] = cutoffs[number[i]]
