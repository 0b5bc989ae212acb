"""The int8 kernel against plain Python integers, jitted, as plain Python and with bounds checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distgnn.kernels.quantized import ITEM_TILE, int8_scores
from tests.unit.kernels.rerun import IS_RERUN, MODES, rerun


def scores(users: np.ndarray, user_scale: np.ndarray, items: np.ndarray, item_scale: np.ndarray) -> np.ndarray:
    out = np.full((len(users), len(items)), np.nan, np.float32)
    int8_scores(users, user_scale, items, item_scale, out)
    return out


@given(
    seed=st.integers(0, 2**32),
    c=st.integers(0, 5),
    m=st.integers(0, 2 * ITEM_TILE + 3),
    d=st.integers(1, 70),
)
@settings(max_examples=5 if IS_RERUN else 60, deadline=None)
def test_scores_equal_plain_sums(seed: int, c: int, m: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    users, items = (rng.integers(-128, 128, (n, d)).astype(np.int8) for n in (c, m))
    user_scale, item_scale = (rng.random(n).astype(np.float32) for n in (c, m))
    found = scores(users, user_scale, items, item_scale)
    for u in range(c):
        for i in range(m):
            total = sum(int(a) * int(b) for a, b in zip(users[u], items[i], strict=True))
            assert found[u, i] == np.float32(total) * (user_scale[u] * item_scale[i])


def test_sums_beyond_16_and_24_bits() -> None:
    d = 1200 if IS_RERUN else 100_000
    low = np.full((1, d), -127, np.int8)
    one = np.ones(1, np.float32)
    assert scores(low, one, low, one)[0, 0] == np.float32(127 * 127 * d)
    assert scores(low, one, -low, one)[0, 0] == np.float32(-127 * 127 * d)


def test_one_user_has_the_scores_that_it_has_among_many() -> None:
    rng = np.random.default_rng(0)
    users, items = (rng.integers(-127, 128, (n, 30)).astype(np.int8) for n in (9, 150))
    user_scale, item_scale = (rng.random(n).astype(np.float32) for n in (9, 150))
    many = scores(users, user_scale, items, item_scale)
    for u in range(9):
        assert (scores(users[u : u + 1], user_scale[u : u + 1], items, item_scale)[0] == many[u]).all()


@pytest.mark.skipif(IS_RERUN, reason="is one already")
@pytest.mark.parametrize("mode", MODES)
def test_unjitted_and_bounds_checked(mode: str, tmp_path: Path) -> None:
    rerun(__file__, mode, tmp_path)
