"""Narrower vectors with nearly the same inner products, in closed form: the start of a student, and what it must beat.

`score_svd` is the truncated singular value decomposition of the score matrix A B^T (Eckart and Young 1936: the nearest
matrix of its rank), computed from the Gram matrices without forming it. `row_pca` projects both on the leading
directions of all rows together, uncentred: centring would change the inner products.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distgnn.export.table import Table, quantize_rows

_RANK_TOLERANCE = 1e-12  # of the largest eigenvalue: directions below it are rounding


def score_svd(user_gram: np.ndarray, item_gram: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps float64 `[d, dim]` for user rows A and item rows B: (A m_A)(B m_B)^T is the best rank-`dim` A B^T.

    Args:
        user_gram: A^T A. item_gram: B^T B, float64 `[d, d]`.
    """
    root_a, inverse_a = _roots(user_gram)
    root_b, inverse_b = _roots(item_gram)
    left, values, right = np.linalg.svd(root_a @ root_b.T)
    half = np.sqrt(values[:dim])
    return inverse_a @ (left[:, :dim] * half), inverse_b @ (right[:dim].T * half)


def _roots(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, R^+) with R^T R = gram: rows X become an orthonormal X R^+."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > _RANK_TOLERANCE * max(values.max(), 0.0)
    root = np.sqrt(np.where(kept, values, 0.0))
    inverse = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
    return root[:, None] * vectors.T, vectors * inverse


def row_pca(gram: np.ndarray, dim: int) -> np.ndarray:
    """Map float64 `[d, dim]` on the leading eigenvectors of the Gram matrix of all rows."""
    _, vectors = np.linalg.eigh(gram)
    return vectors[:, ::-1][:, :dim]


def gram_of(rows: np.ndarray, group: Any | None = None) -> np.ndarray:
    """X^T X of the rows `[n, d]` of all workers of a group, float64; a collective where there is one."""
    chunk = 1 << 16
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk].astype(np.float64)
        total += part.T @ part
    if group is None:
        return total
    return np.array(group.sum_floats(total.reshape(-1).tolist())).reshape(total.shape)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1 (zeros stay): a user's ranking does not change, and every user counts alike."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0)


def best_rank_rows(rows: np.ndarray, is_user: np.ndarray, dim: int, group: Any | None = None) -> np.ndarray:
    """Rows float64 `[n, dim]` whose inner products are the best of their width; arguments as `closed_form_tables`."""
    user_map, item_map = score_svd(gram_of(rows[is_user], group), gram_of(rows[~is_user], group), dim)
    exact = rows.astype(np.float64)
    return np.where(is_user[:, None], exact @ user_map, exact @ item_map)


def closed_form_tables(rows: np.ndarray, is_user: np.ndarray, dim: int, group: Any | None = None) -> dict[str, Table]:
    """Compressed tables of a teacher without training; a collective where there is a group.

    Args:
        rows: the teacher's vectors `[n, d]`, of this worker's nodes with a group, else of all nodes.
        is_user: bool `[n]`. dim: width of the narrower ones.

    Returns:
        teacher-int8 (as wide as the teacher), pca-int8 and svd-int8 (`dim`).
    """
    exact = rows.astype(np.float64)
    projected = exact @ row_pca(gram_of(rows, group), dim)
    unit = np.where(is_user[:, None], unit_rows(exact), exact)
    return {
        "teacher-int8": quantize_rows(rows),
        "pca-int8": quantize_rows(projected),
        "svd-int8": quantize_rows(best_rank_rows(unit, is_user, dim, group)),
    }
