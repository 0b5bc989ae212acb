"""Sorting, hashing, gathering and looking up edges, each in one pass over them."""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.neighbor_sampling import position_in_row
from distgnn.kernels.rng import combine


@njit(nogil=True, cache=True)
def place_by_group(group, order, cursor, out):
    """Second half of a stable counting sort: put every element at the next free place of its group.

    Args:
        group: integer `[E]`, the group of each element.
        order: integer `[E]`, the elements in the order in which ties stand; empty: 0, 1, 2, ...
        cursor: int64 `[groups]`, start of each group; advanced to its end.
        out: integer `[E]`, written: the elements, group by group.
    """
    for j in range(out.shape[0]):
        element = order[j] if order.shape[0] > 0 else j
        g = group[element]
        out[cursor[g]] = element
        cursor[g] += 1


@njit(nogil=True, cache=True)
def hash_pairs(key, left, right, out):
    """Hash of every pair, uint64 `[E]`, into `out`. Pairs with one `left` never collide."""
    for e in range(out.shape[0]):
        out[e] = combine(combine(key, np.uint64(left[e])), np.uint64(right[e]))


@njit(nogil=True, cache=True)
def gather_rows(nodes, n_users, user_offsets, item_offsets, by_item, user, item, node_id, indices, edge):
    """Rows of some nodes of the graph in stable ids, one after the other.

    Args:
        nodes: integer `[n]`, stable users, or n_users + stable items.
        n_users: number of stable users.
        user_offsets: int64 `[n_users + 1]`, cumulative degrees in stable order.
        item_offsets: int64 `[n_items + 1]`, likewise.
        by_item: integer `[E]`, edge ids ordered by (item, user); edge ids are ranks by (user, item).
        user: integer `[E]`, stable users of the edges.
        item: integer `[E]`, stable items of the edges.
        node_id: integer `[N]`, node id of stable users, then of stable items.
        indices: integer, room for the rows; written: the neighbours' node ids, by ascending stable id.
        edge: int64, as long, or empty; written: the edge id of each entry.
    """
    k = 0
    for node in nodes:
        if node < n_users:
            for e in range(user_offsets[node], user_offsets[node + 1]):
                indices[k] = node_id[n_users + item[e]]
                if edge.shape[0] > 0:
                    edge[k] = e
                k += 1
        else:
            i = node - n_users
            for j in range(item_offsets[i], item_offsets[i + 1]):
                e = by_item[j]
                indices[k] = node_id[user[e]]
                if edge.shape[0] > 0:
                    edge[k] = e
                k += 1


@njit(nogil=True, cache=True)
def find_in_rows(row, wanted, indptr, indices, stable_id, found):
    """Whether rows hold a neighbour, by binary search.

    Args:
        row: int64 `[q]`, rows of indptr.
        wanted: int64 `[q]`, stable id of the neighbour looked for.
        indptr: int64, offsets of the rows.
        indices: integer, the rows, ordered by the neighbours' stable ids.
        stable_id: integer `[N]`, node id -> stable id.
        found: bool `[q]`, written.
    """
    for q in range(row.shape[0]):
        found[q] = position_in_row(indices[indptr[row[q]] : indptr[row[q] + 1]], stable_id, wanted[q]) >= 0
