"""Slow, obvious oracle of time-respecting sampling: rows as lists of (neighbour, timestamp), frontiers as lists."""

from __future__ import annotations

from tests import naive_sampling as naive


def allowed_until(row, cutoff, excluded):
    """Neighbours by (timestamp, place in the row), without later edges and without excluded neighbours."""
    dated = sorted((time, place, neighbor) for place, (neighbor, time) in enumerate(row))
    return [neighbor for time, _, neighbor in dated if time <= cutoff and neighbor not in excluded]


def sampled_row(row, cutoff, excluded, fanout, key):
    """Drawn neighbours of a row; key: of everything but the cut-off, which is folded in here."""
    allowed = allowed_until(row, cutoff, excluded)
    if len(allowed) <= fanout:
        return allowed
    return [allowed[r] for r in naive.floyd(naive.combine(key, cutoff & naive.MASK), len(allowed), fanout)]


def minibatch(rows, seeds, fanouts, seed, step, targets, expand="all"):
    """Entries ((type, stable id), cut-off) in order, and of every hop the drawn entries of each destination.

    rows: (type, stable id) -> its row. seeds: entries. targets: pairs of nodes, both ways, that are never drawn.
    """
    frontier, drawn_at, hops = list(dict.fromkeys(seeds)), {}, []
    for hop, fanout in enumerate(fanouts):
        drawn = []
        for entry in list(frontier):
            node, cutoff = entry
            if expand == "all" or entry not in drawn_at:
                key = naive.key_of(seed, naive.DRAW, step)
                for word in (hop, *node):
                    key = naive.combine(key, word)
                out = {neighbor for neighbor, _ in rows[node] if (node, neighbor) in targets}
                drawn_at[entry] = [(n, cutoff) for n in sampled_row(rows[node], cutoff, out, fanout, key)]
            drawn.append(drawn_at[entry])
        frontier += [e for e in dict.fromkeys(e for row in drawn for e in row) if e not in set(frontier)]
        hops.append(drawn)
    return frontier, hops


def degree(rows, entry, targets):
    """Edges up to the cut-off, without the step's target edges."""
    node, cutoff = entry
    return sum(time <= cutoff and (node, neighbor) not in targets for neighbor, time in rows[node])
