from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distgnn.data.keyed_split import TEST, TRAIN, VALID, keyed_split

PAIRS = [(user, item) for user in range(300) for item in range(user % 12 + 1)]
RATIOS = {"valid_ratio": 0.1, "test_ratio": 0.1}


def split(pairs: list[tuple[int, int]], seed: int = 0) -> dict[tuple[int, int], int]:
    labels = keyed_split([u for u, _ in pairs], [i for _, i in pairs], seed=seed, **RATIOS)
    return dict(zip(pairs, labels.tolist(), strict=True))


def test_shares_are_exact_on_average() -> None:
    users = [user for user in range(20_000) for _ in range(7)]
    items = [item for _ in range(20_000) for item in range(7)]
    labels = keyed_split(users, items, seed=3, **RATIOS)
    for label in (VALID, TEST):
        assert abs((labels == label).mean() - 0.1) < 0.002


def test_each_user_keeps_an_edge_and_has_at_most_its_rounded_share() -> None:
    labels = split(PAIRS)
    for user in range(300):
        row = [labels[pair] for pair in PAIRS if pair[0] == user]
        assert TRAIN in row
        for label in (VALID, TEST):
            assert row.count(label) <= np.ceil(len(row) * 0.1)


@given(st.permutations(PAIRS[:120]))
def test_order_of_the_edges_does_not_matter(shuffled: list[tuple[int, int]]) -> None:
    assert split(shuffled) == split(PAIRS[:120])


def test_a_row_depends_on_itself_alone() -> None:
    everyone = split(PAIRS)
    half = [pair for pair in PAIRS if pair[0] % 2]
    assert split(half) == {pair: everyone[pair] for pair in half}


def test_seeds_differ() -> None:
    assert split(PAIRS, seed=0) != split(PAIRS, seed=1)


def test_large_ratios_leave_one() -> None:
    labels = keyed_split([0, 0, 0], [0, 1, 2], valid_ratio=0.49, test_ratio=0.5, seed=0)
    assert (labels == TRAIN).sum() >= 1
