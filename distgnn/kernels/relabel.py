"""Global to local ids of a minibatch: per-thread scratch of (epoch, local id), never cleared.

Nodes have a place each in an array of N. A (node, cut-off) has one in a hash table with open addressing, in which every
cut-off has a range of its own: neighbours of one entry come together, and look for their places in a few cache lines.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.address import AHEAD, prefetch
from distgnn.kernels.rng import GOLDEN

CHUNK = 256  # entries whose slots are on their way before the first of them is read
_S32 = np.uint64(32)


@njit(nogil=True, cache=True)
def append_distinct(candidates, slot, epoch, nodes, n_nodes, index):
    """Append candidates not seen in this epoch to `nodes`, in order, and give the local id of every candidate.

    Args:
        candidates: integer `[c]` node ids; -1 (no node) gets local id -1.
        slot: int64 `[N]` scratch, epoch << 32 | local id; a node is in the minibatch where its epoch is this one.
        epoch: 0 < epoch < 2^31.
        nodes: int64, room for one more than there will be. index: integer `[c]`, written.

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
        # New or not is anybody's guess: no branch, so everything is written either way.
        found = slot[node]
        new = np.int64(found >> 32 != epoch)
        found += new * ((stamp | n_nodes) - found)
        slot[node] = found
        nodes[n_nodes] = node
        n_nodes += new
        index[i] = found & 0xFFFFFFFF
    return n_nodes


@njit(nogil=True, cache=True)
def append_distinct_entries(
    candidates, indptr, run_cutoff, seeds_before, table, epoch, nodes, cutoff, n_entries, index
):
    """As `append_distinct`, for distinct (node, cut-off), the cut-offs being numbered 0, ..., C - 1.

    Args:
        candidates: integer `[c]` node ids; -1 (no node) gets local id -1.
        indptr: int64 `[r + 1]`, of runs of candidates with one cut-off. run_cutoff: integer `[r]`.
        seeds_before: int64 `[C + 1]`, seeds with an earlier cut-off, and all: how the table is shared out.
        table: int64 `[power of two >= 2 * (n_entries + c)]` scratch, slots as those of `append_distinct`.
        nodes, cutoff: integer, room for n_entries + c. index: integer `[c]`, written.

    Returns:
        The new number of entries.
    """
    size = np.int64(table.shape[0])
    mask = size - 1
    address = table.ctypes.data
    n_seeds = max(seeds_before[seeds_before.shape[0] - 1], np.int64(1))
    stamp = np.int64(epoch) << 32
    home = np.empty(CHUNK, np.int64)
    hashed_run = np.int64(-1)
    run = np.int64(0)
    first = np.int64(0)
    span = np.uint64(0)
    for start in range(0, candidates.shape[0], CHUNK):
        stop = min(start + CHUNK, candidates.shape[0])
        for i in range(start, stop):
            if hashed_run < 0 or indptr[hashed_run + 1] <= i:
                hashed_run = max(hashed_run, np.int64(0))
                while indptr[hashed_run + 1] <= i:
                    hashed_run += 1
                time = run_cutoff[hashed_run]
                first = seeds_before[time] * size // n_seeds
                span = np.uint64(seeds_before[time + 1] * size // n_seeds - first)
            place = np.int64((((np.uint64(candidates[i]) * GOLDEN) >> _S32) * span) >> _S32)
            slot = (first + place) & mask  # a last range that is empty begins behind the table
            home[i - start] = slot
            prefetch(address + slot * 8)
        for i in range(start, stop):
            while indptr[run + 1] <= i:
                run += 1
            node = np.int64(candidates[i])
            if node < 0:
                index[i] = -1
                continue
            time = run_cutoff[run]
            slot = home[i - start]
            found = table[slot]
            while found >> 32 == epoch:
                entry = found & 0xFFFFFFFF
                if nodes[entry] == node and cutoff[entry] == time:
                    break
                slot = (slot + 1) & mask
                found = table[slot]
            if found >> 32 != epoch:
                found = stamp | n_entries
                table[slot] = found
                nodes[n_entries] = node
                cutoff[n_entries] = time
                n_entries += 1
            index[i] = found & 0xFFFFFFFF
    return n_entries
