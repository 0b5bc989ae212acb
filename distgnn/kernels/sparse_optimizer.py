"""Row-wise optimizers: rows of this step move, the others don't (the rule of `torch.optim.SparseAdam`)."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def sparse_adam(table, first_moment, second_moment, rows, grad, step, lr, beta1, beta2, eps, weight_decay):
    """Lazy Adam (Kingma and Ba 2015) on the given distinct rows; bias correction by the global step (from 1).

    Args:
        table, first_moment, second_moment: float `[n, d]`, updated. rows: int64 `[r]`. grad: float `[r, d]`.
        weight_decay: L2 coefficient, added to the gradient of these rows.
    """
    step_size = lr * np.sqrt(1.0 - beta2**step) / (1.0 - beta1**step)
    dtype = table.dtype.type
    for i in range(rows.shape[0]):
        row = rows[i]
        for c in range(table.shape[1]):
            g = grad[i, c] + dtype(weight_decay) * table[row, c]
            m = first_moment[row, c] + dtype(1.0 - beta1) * (g - first_moment[row, c])
            v = second_moment[row, c] + dtype(1.0 - beta2) * (g * g - second_moment[row, c])
            first_moment[row, c] = m
            second_moment[row, c] = v
            table[row, c] -= dtype(step_size) * m / (np.sqrt(v) + dtype(eps))


@njit(nogil=True, cache=True)
def sparse_adagrad(table, squares, rows, grad, lr, eps, weight_decay):
    """Adagrad (Duchi et al. 2011, diagonal) on the given distinct rows, as `torch.optim.Adagrad` on sparse gradients.

    Args:
        table, squares: float `[n, d]`, updated; squares are the sums of squared gradients. rows: int64 `[r]`.
        grad: float `[r, d]`. weight_decay: L2 coefficient, added to the gradient of these rows.
    """
    dtype = table.dtype.type
    for i in range(rows.shape[0]):
        row = rows[i]
        for c in range(table.shape[1]):
            g = grad[i, c] + dtype(weight_decay) * table[row, c]
            s = squares[row, c] + g * g
            squares[row, c] = s
            table[row, c] -= dtype(lr) * g / (np.sqrt(s) + dtype(eps))


@njit(nogil=True, cache=True)
def sparse_sgd(table, rows, grad, lr, weight_decay):
    """table[row] -= lr * (grad + weight_decay * table[row]) on the given distinct rows."""
    dtype = table.dtype.type
    for i in range(rows.shape[0]):
        row = rows[i]
        for c in range(table.shape[1]):
            table[row, c] -= dtype(lr) * (grad[i, c] + dtype(weight_decay) * table[row, c])


@njit(nogil=True, cache=True)
def gather_rows(table, rows, out):
    """out[i] = table[rows[i]], float `[r, d]`."""
    for i in range(rows.shape[0]):
        for c in range(table.shape[1]):
            out[i, c] = table[rows[i], c]


@njit(nogil=True, cache=True)
def merge_rows(rows, grad, slot, distinct, merged):
    """Sum the gradients of repeated rows, in the order given.

    Args:
        rows: int64 `[r]`. grad: float `[r, d]`. slot: int32 `[n]` scratch of -1, given back so.
        distinct: int64 `[r]`, written. merged: float `[r, d]`, written.

    Returns:
        The number of distinct rows.
    """
    n = 0
    for i in range(rows.shape[0]):
        row = rows[i]
        s = slot[row]
        if s < 0:
            slot[row] = n
            distinct[n] = row
            for c in range(grad.shape[1]):
                merged[n, c] = grad[i, c]
            n += 1
        else:
            for c in range(grad.shape[1]):
                merged[s, c] += grad[i, c]
    for i in range(n):
        slot[distinct[i]] = -1
    return n
