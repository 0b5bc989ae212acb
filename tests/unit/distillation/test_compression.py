"""Closed-form tables against numpy's decomposition of the matrices that the code never forms."""

from __future__ import annotations

import numpy as np
import pytest

from distgnn.distillation.compression import closed_form_tables, gram_of, row_pca, score_svd, unit_rows


def rows_of(n: int, d: int, rank: int, seed: int) -> np.ndarray:
    """float64 `[n, d]` of a rank, with singular values that differ."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, rank)) * 1.7 ** -np.arange(rank) @ rng.normal(size=(rank, d))


def truncated(matrix: np.ndarray, dim: int) -> np.ndarray:
    """Nearest matrix of a rank, by numpy."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left[:, :dim] * values[:dim] @ right[:dim]


@pytest.mark.parametrize("dim", [1, 3, 8])
@pytest.mark.parametrize(("rank_a", "rank_b"), [(8, 8), (5, 8), (8, 2), (4, 4)])
def test_score_svd_is_the_nearest_matrix_of_its_rank(rank_a: int, rank_b: int, dim: int) -> None:
    a, b = rows_of(60, 8, rank_a, 0), rows_of(35, 8, rank_b, 1)
    map_a, map_b = score_svd(gram_of(a), gram_of(b), dim)
    assert map_a.shape == map_b.shape == (8, dim)
    np.testing.assert_allclose((a @ map_a) @ (b @ map_b).T, truncated(a @ b.T, dim), rtol=0, atol=1e-6)
    # The singular values go half to each side.
    np.testing.assert_allclose(gram_of(a @ map_a), gram_of(b @ map_b), rtol=0, atol=1e-6)


def test_score_svd_of_no_scores_is_zero() -> None:
    maps = score_svd(np.zeros((4, 4)), gram_of(rows_of(9, 4, 4, 0)), 2)
    assert all((m == 0).all() for m in maps)


@pytest.mark.parametrize("dim", [1, 3, 6])
def test_row_pca_is_the_stacked_rows_decomposition(dim: int) -> None:
    rows = rows_of(70, 6, 6, 2) + 0.3  # with a mean that centring would take away
    found = row_pca(gram_of(rows), dim)
    _, _, right = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(found.T @ found, np.eye(dim), atol=1e-10)
    np.testing.assert_allclose(found @ found.T, right[:dim].T @ right[:dim], atol=1e-8)


def test_unit_rows_are_of_length_one_or_zero() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    assert unit_rows(rows).tolist() == [[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]]


def test_gram_of_many_rows_is_float64() -> None:
    rows = np.random.default_rng(3).normal(size=(70_000, 3)).astype(np.float32)
    np.testing.assert_allclose(gram_of(rows), rows.astype(np.float64).T @ rows.astype(np.float64), rtol=1e-12)


def test_closed_form_tables_and_their_bytes() -> None:
    a, b = rows_of(60, 16, 16, 4), rows_of(35, 16, 16, 5)
    order = np.random.default_rng(0).permutation(95)  # users and items as they stand at a worker
    rows, is_user = np.concatenate([a, b])[order].astype(np.float32), order < 60
    dim = 6
    tables = closed_form_tables(rows, is_user, dim)
    assert {name: t.nbytes / 95 for name, t in tables.items()} == {
        "teacher-int8": 16 + 2,
        "pca-int8": dim + 2,
        "svd-int8": dim + 2,
    }
    scores = {}
    for name, table in tables.items():
        assert table.values.dtype == np.int8
        vectors = np.empty((95, table.dim))
        vectors[order] = table.dequantize()
        scores[name] = vectors[:60] @ vectors[60:].T
    _, _, right = np.linalg.svd(np.concatenate([a, b]), full_matrices=False)
    onto = right[:dim].T @ right[:dim]
    unit = a / np.linalg.norm(a, axis=1, keepdims=True)
    for name, expected in {
        "teacher-int8": a @ b.T,
        "pca-int8": a @ onto @ b.T,
        "svd-int8": truncated(unit @ b.T, dim),
    }.items():
        error = np.linalg.norm(scores[name] - expected) / np.linalg.norm(expected)
        assert error < 0.02, name
