"""Slow, obvious oracle of inclusion probabilities: products over neighbours, and shares of draws, node by node."""

from __future__ import annotations

from math import log, prod


def reach(rows, n_users, fanout, seed_share, own, expand):
    """Probabilities to be in F_0 ... F_L, and to draw at each hop; `own`: users whose edges may be seeds."""
    n = len(rows)
    inside = []
    for v in range(n):
        edges = (len(rows[v]) if v in own else 0) if v < n_users else sum(u in own for u in rows[v])
        inside.append(1 - (1 - seed_share) ** edges)
    levels, drawing = [inside], []
    for fan in fanout:
        before = levels[-1]
        if expand == "all" or len(levels) == 1:
            draws = before
        else:
            draws = [now - earlier for now, earlier in zip(before, levels[-2], strict=True)]
        drawing.append(draws)
        levels.append(
            [1 - (1 - before[v]) * prod(1 - min(1, fan / len(rows[u])) * draws[u] for u in rows[v]) for v in range(n)]
        )
    return levels, drawing


def work(rows, n_users, fanout, seed_share, own, expand):
    """Expected draws by user: every draw laid on who brought the drawing node in, hop by hop."""
    _, drawing = reach(rows, n_users, fanout, seed_share, own, expand)
    levels, _ = reach(rows, n_users, fanout, seed_share, own, expand)
    users = [0.0] * n_users

    def lay(node, hop, amount):
        """On those that may have brought the node into F_hop."""
        if hop == 0:
            culprits = [node] * len(rows[node]) if node < n_users else [u for u in rows[node] if u in own]
            for user in culprits:
                users[user] += amount / len(culprits)
            return
        parts = [(u, -log(1 - min(1, fanout[hop - 1] / len(rows[u])) * drawing[hop - 1][u])) for u in rows[node]]
        if expand == "all":
            parts.append((node, -log(1 - levels[hop - 1][node])))
        total = sum(part for _, part in parts)
        for other, part in parts:
            if part:
                lay(other, hop - 1, amount * part / total)

    for hop, fan in enumerate(fanout):
        for v in range(len(rows)):
            amount = drawing[hop][v] * min(len(rows[v]), fan)
            if amount:
                lay(v, hop, amount)
    return users
