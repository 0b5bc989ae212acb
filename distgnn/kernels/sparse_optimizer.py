"""Row-wise optimizers: rows of this step move, the others don't (the rule of `torch.optim.SparseAdam`).

Rows lie anywhere in tables that no cache holds: each is asked for a few rows before its turn. Every kernel is a pass
over rows that do not know of each other, so that its caller may share them out to threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from distgnn.kernels.address import prefetch
from distgnn.kernels.prefetch import prefetch_row

_AHEAD = 8  # rows
_GATHER_AHEAD = 16
PLACE_BITS = 40  # of a slot: where a gradient is; above them the stamp
MOST_STAMPS = 1 << (63 - PLACE_BITS)


# Without numpy's error model every division checks for zero, and the loop is not vectorised.
@njit(nogil=True, cache=True, error_model="numpy")
def sparse_adam(table, first_moment, second_moment, rows, grad, at, step, lr, beta1, beta2, eps, weight_decay):
    """Lazy Adam (Kingma and Ba 2015) on the given distinct rows; bias correction by the global step (from 1).

    Args:
        table, first_moment, second_moment: float `[n, d]`, updated. rows: int64 `[r]`. grad: float `[g, d]`.
        at: int64 `[r]`, which of the gradients is a row's.
        weight_decay: L2 coefficient, added to the gradient of these rows.
    """
    dtype = table.dtype.type
    step_size = dtype(lr * np.sqrt(1.0 - beta2**step) / (1.0 - beta1**step))
    rate1, rate2 = dtype(1.0 - beta1), dtype(1.0 - beta2)
    epsilon, decay = dtype(eps), dtype(weight_decay)
    n = rows.shape[0]
    for i in range(n):
        if i + _AHEAD < n:
            ahead = rows[i + _AHEAD]
            prefetch_row(table, ahead)
            prefetch_row(first_moment, ahead)
            prefetch_row(second_moment, ahead)
        row = rows[i]
        weight, first, second, gradient = table[row], first_moment[row], second_moment[row], grad[at[i]]
        for c in range(table.shape[1]):
            g = gradient[c] + decay * weight[c]
            m = first[c] + rate1 * (g - first[c])
            v = second[c] + rate2 * (g * g - second[c])
            first[c] = m
            second[c] = v
            weight[c] -= step_size * m / (np.sqrt(v) + epsilon)


@njit(nogil=True, cache=True, error_model="numpy")
def sparse_adagrad(table, squares, rows, grad, at, lr, eps, weight_decay):
    """Adagrad (Duchi et al. 2011, diagonal) on the given distinct rows, as `torch.optim.Adagrad` on sparse gradients.

    Args:
        table, squares: float `[n, d]`, updated; squares are the sums of squared gradients. rows: int64 `[r]`.
        grad: float `[g, d]`. at: int64 `[r]`, which of them is a row's.
        weight_decay: L2 coefficient, added to the gradient of these rows.
    """
    dtype = table.dtype.type
    rate, epsilon, decay = dtype(lr), dtype(eps), dtype(weight_decay)
    n = rows.shape[0]
    for i in range(n):
        if i + _AHEAD < n:
            prefetch_row(table, rows[i + _AHEAD])
            prefetch_row(squares, rows[i + _AHEAD])
        row = rows[i]
        weight, square, gradient = table[row], squares[row], grad[at[i]]
        for c in range(table.shape[1]):
            g = gradient[c] + decay * weight[c]
            s = square[c] + g * g
            square[c] = s
            weight[c] -= rate * g / (np.sqrt(s) + epsilon)


@njit(nogil=True, cache=True)
def sparse_sgd(table, rows, grad, at, lr, weight_decay):
    """table[row] -= lr * (grad[at] + weight_decay * table[row]) on the given distinct rows."""
    dtype = table.dtype.type
    rate, decay = dtype(lr), dtype(weight_decay)
    n = rows.shape[0]
    for i in range(n):
        if i + _AHEAD < n:
            prefetch_row(table, rows[i + _AHEAD])
        weight, gradient = table[rows[i]], grad[at[i]]
        for c in range(table.shape[1]):
            weight[c] -= rate * (gradient[c] + decay * weight[c])


@njit(nogil=True, cache=True)
def gather_rows(table, rows, out):
    """out[i] = table[rows[i]], float `[r, d]`."""
    n = rows.shape[0]
    for i in range(n):
        if i + _GATHER_AHEAD < n:
            prefetch_row(table, rows[i + _GATHER_AHEAD])
        source, target = table[rows[i]], out[i]
        for c in range(table.shape[1]):
            target[c] = source[c]


@njit(nogil=True, cache=True)
def gather_rows_to(table, rows, positions, out):
    """out[p] = table[rows[p]] for the positions p.

    Args:
        table: `[n, d]`. rows: int64 `[r]`. positions: int64 `[k]`. out: `[r, d]`, written at the positions.
    """
    n = positions.shape[0]
    for i in range(n):
        if i + _GATHER_AHEAD < n:
            prefetch_row(table, rows[positions[i + _GATHER_AHEAD]])
        source, target = table[rows[positions[i]]], out[positions[i]]
        for c in range(table.shape[1]):
            target[c] = source[c]


@njit(nogil=True, cache=True)
def find_first(rows, at, stamp, slot, first, first_at, repeated):
    """Tell which rows of a worker no worker before it has; call it for the workers in rank order.

    Args:
        rows: int64 `[r]`, within `[0, n)`. at: int64 `[r]`, where their gradients are.
        stamp: of this step, from 1; larger than of any earlier one with this slot.
        slot: int64 `[n]`, 0 at first; where a row's first gradient is, with the stamp, so that nothing is cleared.
        first, first_at: int64 `[r]`, written: the rows that are first, and where their gradients are.
        repeated: int64 `[r, 2]`, written: of each other row, where its first gradient is and where this one.

    Returns:
        How many are first, and how many repeated.
    """
    n = 0
    m = 0
    high = np.int64(stamp) << PLACE_BITS
    for i in range(rows.shape[0]):
        if i + _GATHER_AHEAD < rows.shape[0]:
            prefetch(slot.ctypes.data + rows[i + _GATHER_AHEAD] * slot.itemsize)
        row = rows[i]
        s = slot[row]
        if s < high:
            slot[row] = high | at[i]
            first[n], first_at[n] = row, at[i]
            n += 1
        else:
            repeated[m, 0], repeated[m, 1] = s - high, at[i]
            m += 1
    return n, m


@njit(nogil=True, cache=True)
def add_repeated(repeated, grad):
    """Add gradients of repeated rows to the first ones, in the order given.

    Args:
        repeated: int64 `[m, 2]`, as `find_first` gives it. grad: float `[g, d]`, updated.
    """
    m = repeated.shape[0]
    for i in range(m):
        if i + _AHEAD < m:
            prefetch_row(grad, repeated[i + _AHEAD, 0])
            prefetch_row(grad, repeated[i + _AHEAD, 1])
        target, source = grad[repeated[i, 0]], grad[repeated[i, 1]]
        for c in range(grad.shape[1]):
            target[c] += source[c]
