"""The per-user split of the datasets that distgnn builds itself: by a keyed hash of the names, not by position."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from distgnn.data.interactions import TEST, TRAIN, VALID


def _hash(*parts: object) -> int:
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _share(count: int, ratio: float, *key: object) -> int:
    """`ratio` of `count`, rounded up or down at random so that the expectation is exact."""
    return int(count * ratio + _hash(*key) / 2.0**64)


def keyed_split(
    user: Sequence[object], item: Sequence[object], *, valid_ratio: float, test_ratio: float, seed: int
) -> np.ndarray:
    """Labels TRAIN, VALID or TEST of interactions, chosen user by user.

    A user's items are put in the order of hash(seed, user, item); the first are test, the next validation. How many
    is `ratio` times the user's items, rounded up or down by another hash so that short rows keep the ratio on average;
    at least one item of each user stays in train. The label of a pair depends on the user's own items alone.

    Args:
        user: names, `[E]`; their text is hashed.
        item: names, `[E]`; no pair stands twice.
        valid_ratio: share of the validation edges.
        test_ratio: share of the test edges; together below 1.
        seed: another seed gives another split.

    Returns:
        int8 `[E]`.
    """
    rows: dict[object, list[int]] = {}
    for edge, name in enumerate(user):
        rows.setdefault(name, []).append(edge)
    labels = np.full(len(user), TRAIN, dtype=np.int8)
    for name, edges in rows.items():
        n_test = min(_share(len(edges), test_ratio, seed, "test", name), len(edges) - 1)
        n_valid = min(_share(len(edges), valid_ratio, seed, "valid", name), len(edges) - 1 - n_test)
        order = sorted(edges, key=lambda edge: (_hash(seed, "order", name, item[edge]), str(item[edge])))
        labels[order[:n_test]] = TEST
        labels[order[n_test : n_test + n_valid]] = VALID
    return labels
