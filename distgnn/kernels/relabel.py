"""Global to local ids of a minibatch: a per-thread array of (stamp, local id), never cleared."""

from __future__ import annotations

from numba import njit


@njit(nogil=True, cache=True)
def append_distinct(candidates, stamp, local, epoch, nodes, n_nodes, index):
    """Append candidates not seen in this epoch to `nodes`, in order, and give the local id of every candidate.

    Args:
        candidates: int64 `[c]` node ids; -1 (no node) gets local id -1.
        stamp, local: int32 `[N]` scratch; a node is in the minibatch where stamp[node] == epoch.
        nodes: int64, room for n_nodes + c. index: int64 `[c]`, written.

    Returns:
        The new number of nodes.
    """
    for i in range(candidates.shape[0]):
        node = candidates[i]
        if node < 0:
            index[i] = -1
            continue
        if stamp[node] != epoch:
            stamp[node] = epoch
            local[node] = n_nodes
            nodes[n_nodes] = node
            n_nodes += 1
        index[i] = local[node]
    return n_nodes
