"""Slow, obvious oracles of keys, seed order, neighbour draws and negatives: Python integers cut to 64 bits."""

from __future__ import annotations

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
DRAW, ORDER, NEGATIVE = 1, 2, 3  # the streams


def mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def combine(key, word):
    return mix(((key ^ word) + GOLDEN) & MASK)


def key_of(first, *words):
    """splitmix64 of the first word, the others folded in."""
    key = mix((first + GOLDEN) & MASK)
    for word in words:
        key = combine(key, word)
    return key


def draw(key, j):
    return mix((key + (j + 1) * GOLDEN) & MASK)


def bounded(bits, n):
    return (bits * n) >> 64


def permutation(x, n, key):
    """Image of x under the keyed Feistel permutation of [0, n)."""
    half = 1
    while 4**half < n:
        half += 1
    while True:
        left, right = x >> half, x % 2**half
        for r in range(6):
            left, right = right, left ^ (combine(combine(key, r), right) % 2**half)
        x = (left << half) | right
        if x < n:
            return x


def floyd(key, n, k):
    """Give k distinct numbers of range(n), k < n, in the order in which they are picked."""
    picked = []
    for count, j in enumerate(range(n - k, n)):
        rank = bounded(draw(key, count), j + 1)
        picked.append(j if rank in picked else rank)
    return picked


def sampled_row(row, excluded, fanout, key):
    """Drawn elements of a row, the excluded ones left out; the whole rest where it is no longer than the fanout."""
    allowed = [x for x in row if x not in excluded]
    return [allowed[r] for r in floyd(key, len(allowed), fanout)] if len(allowed) > fanout else allowed


def edges_by_id(neighbors):
    """(user, item, position) of every edge id; neighbors: a sorted list of items a user."""
    return [(u, i, p) for u, row in enumerate(neighbors) for p, i in enumerate(row)]


def negatives(positives, n_items, key, k):
    """Draw k items that are not positives; -1 where every item is one."""
    allowed = [i for i in range(n_items) if i not in positives]
    return [allowed[bounded(draw(key, j), len(allowed))] if allowed else -1 for j in range(k)]


def known_columns(positives, own_column, columns):
    """(row, column) where the column's item is a positive of the row, but for the row's own."""
    return {
        (r, c)
        for r, wanted in enumerate(positives)
        for c, item in enumerate(columns)
        if item in wanted and c != own_column[r]
    }
