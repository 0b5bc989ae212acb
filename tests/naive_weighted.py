"""Slow, obvious oracle of sampling by weight: the same picks, with Python's integers and lists."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import permutations

from tests import naive_sampling as naive

CELL = 2**32


def units(weights):
    """Whole units of a row's weights: at most 2**62 in all, the unit a power of two; at least one where above 0."""
    exponent = math.frexp(max(weights))[1]
    unit = Fraction(2) ** (62 - (len(weights) - 1).bit_length() - exponent)
    return [max(1, math.floor(Fraction(w) * unit)) if w > 0 else 0 for w in weights]


def shares(row_units):
    """The same as 2**32 parts of a cell, of which there is one for each edge: differences of rounded sums."""
    total, n = sum(row_units), len(row_units)
    ends = [int(float(sum(row_units[: p + 1])) / float(total) * float(n * CELL)) for p in range(n)]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def alias_table(row_units):
    """(threshold, alias) of every cell."""
    left = shares(row_units)
    light = [p for p, share in enumerate(left) if share <= CELL]
    heavy = [p for p, share in enumerate(left) if share > CELL]
    cells = {}
    while heavy:
        if left[heavy[0]] > CELL:
            p, alias = light.pop(0), heavy[0]
        else:
            p = heavy.pop(0)
            alias = heavy[0] if heavy else p
        cells[p] = (left[p], alias)
        if alias != p:
            left[alias] -= CELL - left[p]
    cells |= {p: (left[p], p) for p in light}
    return [cells[p] for p in range(len(left))]


def candidates(weights, fanout, key):
    """What the row's hashes give, excluded or picked already or not, and how many hashes these were."""
    table, n = alias_table(units(weights)), len(weights)
    if n <= 64:  # a hash gives two, and a cell is parted to 26 bits
        hashes = 2 * fanout + 4
        halves = [half for j in range(hashes) for half in divmod(naive.draw(key, j), 2**32)]
        places = [divmod(half * n, CELL) for half in halves]
        return [cell if within // 64 < table[cell][0] // 64 else table[cell][1] for cell, within in places], hashes
    hashes = 24 * fanout + 8
    places = [divmod(naive.draw(key, j) * n >> 32, CELL) for j in range(hashes)]
    return [cell if within < table[cell][0] else table[cell][1] for cell, within in places], hashes


def sampled_row(weights, excluded, fanout, key):
    """Positions drawn from a row by weight, without the excluded ones; all that weigh something if these are few."""
    allowed = [p for p in range(len(weights)) if p not in excluded]
    if len(allowed) <= fanout:
        return [p for p in allowed if weights[p] > 0]
    row_units = units(weights)
    if sum(row_units) == 0:
        return []
    found, hashes = candidates(weights, fanout, key)
    picks = list(dict.fromkeys(p for p in found if p in allowed))[:fanout]
    while len(picks) < fanout:
        left = [p for p in allowed if p not in picks and row_units[p] > 0]
        if not left:
            break
        target = naive.bounded(naive.draw(key, hashes + len(picks)), sum(row_units[p] for p in left))
        for p in left:
            target -= row_units[p]
            if target < 0:
                picks.append(p)
                break
    return picks


def sequences(weights, excluded, fanout):
    """Probability of every sequence of picks: each in proportion to weight among what is left."""
    allowed = [p for p in range(len(weights)) if p not in excluded and weights[p] > 0]
    probability = {}
    for picks in permutations(allowed, fanout):
        left, product = sum(weights[p] for p in allowed), 1.0
        for p in picks:
            product *= weights[p] / left
            left -= weights[p]
        probability[picks] = product
    return probability
