"""Sums over neighbours against lists, jitted, as plain Python and with bounds checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distgnn.kernels.neighbor_sums import add_neighbor_terms
from tests.unit.kernels.rerun import IS_RERUN, MODES, rerun


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_terms_of_the_neighbours_are_added(dtype: type) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 30, n).tolist() for n in (0, 1, 7, 0, 12)]
    term, total = rng.normal(size=30), rng.normal(size=len(rows))
    expected = [t + sum(term[v] for v in row) for t, row in zip(total, rows, strict=True)]
    indptr = np.cumsum([0, *map(len, rows)])
    add_neighbor_terms(indptr, np.array(sum(rows, []), dtype), term, total)
    np.testing.assert_allclose(total, expected, rtol=1e-12)


@pytest.mark.skipif(IS_RERUN, reason="this is the rerun")
@pytest.mark.parametrize("mode", MODES)
def test_other_modes(mode: str, tmp_path: Path) -> None:
    rerun(__file__, mode, tmp_path)
