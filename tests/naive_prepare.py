"""Slow, obvious versions of what prepare does, on lists and dictionaries."""

from __future__ import annotations

from collections import defaultdict

import numpy as np


def deduplicate(logs):
    """logs: lists of (user, item, time, weight); returns {(user, item): (log, earliest time, summed weight)}."""
    events = defaultdict(list)
    for number, log in enumerate(logs):
        for user, item, time, weight in log:
            events[user, item].append((number, time, weight))
    edges = {}
    for pair, rows in events.items():
        first = min(number for number, _, _ in rows)
        own = [(time, weight) for number, time, weight in rows if number == first]
        edges[pair] = (first, min(time for time, _ in own), sum(weight for _, weight in own))
    return edges


def stable_rows(edges, n_users, n_items):
    """Neighbours' stable ids of each user and of each item, ascending."""
    users = [sorted(i for u, i in edges if u == user) for user in range(n_users)]
    items = [sorted(u for u, i in edges if i == item) for item in range(n_items)]
    return users, items


def relabelled(part, n_users, n_parts):
    """Offsets, stable ids and node ids: partition by partition, its users, then its items, by stable id."""
    offsets, stable, node_id = [], [], [None] * len(part)
    for p in range(n_parts):
        members = [n for n in range(len(part)) if part[n] == p]
        users = [n for n in members if n < n_users]
        start = len(stable)
        for n in users + [n for n in members if n >= n_users]:
            node_id[n] = len(stable)
            stable.append(n if n < n_users else n - n_users)
        offsets.append((start, start + len(users), len(stable)))
    return np.array(offsets), np.array(stable), np.array(node_id)


def cut_and_halo(edges, part, n_users):
    """Edges between partitions, and (partition, remote neighbour) pairs."""
    cut, halo = 0, set()
    for user, item in edges:
        a, b = part[user], part[n_users + item]
        if a != b:
            cut += 1
            halo |= {(a, n_users + item), (b, user)}
    return cut, len(halo)


def random_edges(rng, n_users, n_items, n_edges):
    """Distinct edges in order."""
    pairs = {(int(rng.integers(n_users)), int(rng.integers(n_items))) for _ in range(n_edges)}
    return sorted(pairs)
