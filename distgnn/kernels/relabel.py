"""Global to local ids of a minibatch: per-thread scratch of (epoch, local id), never cleared.

Nodes have a place each in an array of N. A (node, cut-off) has one in a hash table with open addressing.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.address import AHEAD, prefetch
from distgnn.kernels.rng import hash2


@njit(nogil=True, cache=True)
def append_distinct(candidates, slot, epoch, nodes, n_nodes, index):
    """Append candidates not seen in this epoch to `nodes`, in order, and give the local id of every candidate.

    Args:
        candidates: integer `[c]` node ids; -1 (no node) gets local id -1.
        slot: int64 `[N]` scratch, epoch << 32 | local id; a node is in the minibatch where its epoch is this one.
        epoch: 0 < epoch < 2^31.
        nodes: int64, room for n_nodes + c. index: integer `[c]`, written.

    Returns:
        The new number of nodes.
    """
    n = candidates.shape[0]
    address = slot.ctypes.data
    stamp = np.int64(epoch) << 32
    for i in range(n):
        if i + AHEAD < n:
            prefetch(address + np.int64(candidates[i + AHEAD]) * 8)
        node = np.int64(candidates[i])
        if node < 0:
            index[i] = -1
            continue
        found = slot[node]
        if found >> 32 != epoch:
            found = stamp | n_nodes
            slot[node] = found
            nodes[n_nodes] = node
            n_nodes += 1
        index[i] = found & 0xFFFFFFFF
    return n_nodes


@njit(nogil=True, cache=True)
def append_distinct_entries(candidates, candidate_cutoff, table, epoch, nodes, cutoff, n_entries, index):
    """As `append_distinct`, for distinct (node, cut-off).

    Args:
        candidates: integer `[c]` node ids; -1 (no node) gets local id -1. candidate_cutoff: int64 `[c]`.
        table: int32 `[power of two >= 2 * (n_entries + c), 2]` of (stamp, local id); a slot is taken where its stamp is
            the epoch.
        nodes, cutoff: int64, room for n_entries + c. index: integer `[c]`, written.

    Returns:
        The new number of entries.
    """
    mask = table.shape[0] - 1
    for i in range(candidates.shape[0]):
        node = np.int64(candidates[i])
        if node < 0:
            index[i] = -1
            continue
        slot = np.int64(hash2(np.uint64(node), np.uint64(candidate_cutoff[i])) & np.uint64(mask))
        while table[slot, 0] == epoch:
            entry = table[slot, 1]
            if nodes[entry] == node and cutoff[entry] == candidate_cutoff[i]:
                break
            slot = (slot + 1) & mask
        if table[slot, 0] != epoch:
            table[slot, 0] = epoch
            table[slot, 1] = n_entries
            nodes[n_entries] = node
            cutoff[n_entries] = candidate_cutoff[i]
            n_entries += 1
        index[i] = table[slot, 1]
    return n_entries
