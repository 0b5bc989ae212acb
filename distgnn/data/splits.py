"""Which edges are for training, validation and test.

Where time does not decide, a hash keyed by (seed, stable user, stable item) does: a label never depends on the order of
the log.
"""

from __future__ import annotations

import numpy as np

from distgnn.data.interactions import TEST, TRAIN, VALID, group_order
from distgnn.kernels.edges import hash_pairs
from distgnn.kernels.rng import STREAM_SPLIT, hash2
from distgnn.types import UserError

KINDS = ("leave_last_k", "per_user_ratio", "global_time")
HOLD_OUT_OF_TRAIN = 0.1  # of each user's train edges, where a given split has no validation


def split_edges(
    user: np.ndarray,
    item: np.ndarray,
    timestamp: np.ndarray | None,
    *,
    kind: str,
    holdout: int = 1,
    valid_ratio: float = 0.1,
    test_ratio: float = 0.1,
    seed: int = 0,
    position: np.ndarray | None = None,
) -> np.ndarray:
    """Label distinct edges.

    `leave_last_k`: the last `holdout` edges of each user are test, as many before them validation, where at least one
    is left to train on; equal timestamps are ordered by hash. `per_user_ratio`: of a user's n edges floor(n ratio) by
    hash. `global_time`: the last edges by time are test, those before them validation; edges of one instant stay
    together, with the later part.

    Args:
        user: stable users, integer `[E]`.
        item: stable items, integer `[E]`; no pair stands twice.
        timestamp: int64 `[E]`, or None.
        kind: leave_last_k, per_user_ratio or global_time.
        holdout: of leave_last_k.
        valid_ratio: of the other two.
        test_ratio: of the other two.
        seed: another seed gives another split where time does not decide.
        position: integer `[E]`, place of each edge in the log; leave_last_k goes by it without timestamps (None: as
            they stand).

    Returns:
        int8 `[E]`: TRAIN = 0, VALID = 1, TEST = 2.

    Raises:
        UserError: global_time without timestamps, or with so few different ones that nothing is left to train on.
    """
    assert kind in KINDS
    if kind == "global_time":
        return _by_time(timestamp, valid_ratio, test_ratio)
    if kind == "per_user_ratio":
        count = np.bincount(user)
        return _last_of_user(user, _hash_order(user, item, seed), _share(count, valid_ratio), _share(count, test_ratio))
    if timestamp is not None:
        hashed = _hash_order(user, item, seed)
        order = hashed[np.argsort(timestamp[hashed], kind="stable")]
    else:
        order = np.arange(len(user)) if position is None else np.argsort(position, kind="stable")
    held = np.where(np.bincount(user) > 2 * holdout, holdout, 0)
    return _last_of_user(user, order, held, held)


def hold_out_of_train(user: np.ndarray, item: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Labels with a tenth of each user's train edges (rounded down), by hash, made validation.

    Args:
        user: stable users, integer `[E]`.
        item: stable items, integer `[E]`; no pair stands twice.
        labels: int8 `[E]`.
        seed: another seed gives another tenth.
    """
    train = np.flatnonzero(labels == TRAIN)
    part = split_edges(
        user[train], item[train], None, kind="per_user_ratio", valid_ratio=HOLD_OUT_OF_TRAIN, test_ratio=0.0, seed=seed
    )
    labels = labels.copy()
    labels[train] = part
    return labels


def _share(count: np.ndarray, ratio: float) -> np.ndarray:
    """floor(count * ratio), safe from a product a hair below the whole number that it stands for."""
    return np.floor(count * ratio + 1e-9).astype(np.int64)


def _hash_order(user: np.ndarray, item: np.ndarray, seed: int) -> np.ndarray:
    """Order of the edges by the hash of (seed, user, item)."""
    with np.errstate(over="ignore"):
        key = np.uint64(hash2(np.uint64(seed), STREAM_SPLIT))
        hashed = np.empty(len(user), np.uint64)
        hash_pairs(key, user, item, hashed)
    return np.argsort(hashed, kind="stable")


def _last_of_user(user: np.ndarray, order: np.ndarray, n_valid: np.ndarray, n_test: np.ndarray) -> np.ndarray:
    """Label the last n_test edges of each user in an order TEST, the n_valid before them VALID."""
    offsets, by_user = group_order(user, len(n_test), order)
    left = np.empty(len(user), np.int64)  # edges of the same user from this one on
    owner = user[by_user]
    left[by_user] = offsets[owner + 1] - np.arange(len(user))
    labels = np.full(len(user), TRAIN, np.int8)
    labels[left <= (n_test + n_valid)[user]] = VALID
    labels[left <= n_test[user]] = TEST
    return labels


def _by_time(timestamp: np.ndarray | None, valid_ratio: float, test_ratio: float) -> np.ndarray:
    if timestamp is None:
        raise UserError("data.split = 'global_time' needs timestamps; name their column in data.timestamp_column")
    labels = np.full(len(timestamp), TRAIN, np.int8)
    ordered = np.sort(timestamp)
    for label, ratio in ((VALID, valid_ratio + test_ratio), (TEST, test_ratio)):
        held = round(len(ordered) * ratio)
        if held:
            labels[timestamp >= ordered[len(ordered) - held]] = label
    if not (labels == TRAIN).any():
        raise UserError(
            f"data.split = 'global_time' leaves nothing to train on: the log has {len(np.unique(ordered))} different"
            f" timestamps, and edges of one instant stay together; lower data.valid_ratio and data.test_ratio"
        )
    return labels
