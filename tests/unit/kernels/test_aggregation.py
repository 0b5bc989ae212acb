"""Neighbour sums, the transpose of a block and the backward against loops that nobody would ship."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distgnn.kernels.aggregation import neighbor_sum, neighbor_sum_backward, transpose_block
from tests.unit.kernels.rerun import IS_RERUN, MODES, rerun


def random_block(rng: np.random.Generator, n_dst: int, n_src: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Indptr int64 `[n_dst + 1]` and indices int32: rows of up to `most` edges, some of them empty."""
    count = rng.integers(0, most + 1, n_dst) if n_src else np.zeros(n_dst, np.int64)
    indptr = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    return indptr, rng.integers(0, max(n_src, 1), indptr[-1]).astype(np.int32)


def naive_sum(
    x: np.ndarray, source: np.ndarray, destination: np.ndarray, indptr: np.ndarray, indices: np.ndarray
) -> np.ndarray:
    """As `neighbor_sum`, edge by edge in float64."""
    out = np.zeros((len(indptr) - 1, x.shape[1]))
    for i in range(len(out)):
        for j in indices[indptr[i] : indptr[i + 1]]:
            out[i] += destination[i] * source[j] * x[j].astype(np.float64)
    return out


def transposed(indptr: np.ndarray, indices: np.ndarray, n_src: int) -> tuple[np.ndarray, np.ndarray]:
    source_indptr, destinations = np.full(n_src + 1, -7, np.int64), np.full(len(indices), -7, np.int32)
    transpose_block(indptr, indices, source_indptr, destinations)
    return source_indptr, destinations


sizes = st.integers(0, 12)
shapes = {
    "n_dst": sizes,
    "n_src": sizes,
    "most": st.integers(0, 5),
    "d": st.integers(1, 33),
    "seed": st.integers(0, 99),
}


@settings(max_examples=60, deadline=None)
@given(**shapes, dtype=st.sampled_from(["float32", "float64"]))
def test_sum_and_backward_are_the_naive_ones(n_dst: int, n_src: int, most: int, d: int, seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    indptr, indices = random_block(rng, n_dst, n_src, most)
    x, grad_out = (rng.normal(size=(n, d)).astype(dtype) for n in (n_src, n_dst))
    source, destination = (rng.uniform(0.5, 2, n).astype(dtype) for n in (n_src, n_dst))
    grad_own = rng.normal(size=(n_src // 2, d)).astype(dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-12}

    out = np.full((n_dst, d), np.nan, dtype)
    neighbor_sum(x, source, destination, indptr, indices, out)
    np.testing.assert_allclose(out, naive_sum(x, source, destination, indptr, indices), **tolerance)

    expected = np.zeros((n_src, d))
    expected[: len(grad_own)] = grad_own
    for i in range(n_dst):
        for j in indices[indptr[i] : indptr[i + 1]]:
            expected[j] += destination[i] * source[j] * grad_out[i].astype(np.float64)
    grad = np.full((n_src, d), np.nan, dtype)
    neighbor_sum_backward(grad_out, grad_own, source, destination, *transposed(indptr, indices, n_src), 0, grad)
    np.testing.assert_allclose(grad, expected, **tolerance)


@settings(max_examples=60, deadline=None)
@given(**{name: shapes[name] for name in ("n_dst", "n_src", "most", "seed")})
def test_transpose_lists_destinations_in_order(n_dst: int, n_src: int, most: int, seed: int) -> None:
    indptr, indices = random_block(np.random.default_rng(seed), n_dst, n_src, most)
    source_indptr, destinations = transposed(indptr, indices, n_src)
    rows = np.repeat(np.arange(n_dst), np.diff(indptr))
    assert source_indptr[0] == 0 and source_indptr[-1] == len(indices)
    for j in range(n_src):
        assert destinations[source_indptr[j] : source_indptr[j + 1]].tolist() == rows[indices == j].tolist()


@pytest.mark.parametrize("cut", [1, 17, 39])
def test_rows_in_parts_are_the_rows_at_once_to_the_bit(cut: int) -> None:
    rng = np.random.default_rng(3)
    n_dst, n_src, d = 40, 60, 16
    indptr, indices = random_block(rng, n_dst, n_src, 6)
    x, grad_out = (rng.normal(size=(n, d)).astype(np.float32) for n in (n_src, n_dst))
    source, destination = (rng.uniform(0.5, 2, n).astype(np.float32) for n in (n_src, n_dst))
    whole, parts = np.empty((2, n_dst, d), np.float32)
    neighbor_sum(x, source, destination, indptr, indices, whole)
    for a, b in ((0, cut), (cut, n_dst)):
        neighbor_sum(x, source, destination[a:b], indptr[a : b + 1], indices, parts[a:b])
    assert whole.tobytes() == parts.tobytes()
    whole, parts = np.empty((2, n_src, d), np.float32)
    order = transposed(indptr, indices, n_src)
    neighbor_sum_backward(grad_out, x[:5], source, destination, *order, 0, whole)
    for a, b in ((0, cut), (cut, n_src)):
        neighbor_sum_backward(grad_out, x[:5], source, destination, *order, a, parts[a:b])
    assert whole.tobytes() == parts.tobytes()


@pytest.mark.skipif(IS_RERUN, reason="is the rerun itself")
@pytest.mark.parametrize("mode", MODES)
def test_same_answers_unjitted_and_with_bounds_checked(mode: str, tmp_path: Path) -> None:
    rerun(__file__, mode, tmp_path)
