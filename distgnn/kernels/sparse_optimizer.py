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
PLACE_BITS = 40  # of a slot: which row; above them the stamp
MOST_STAMPS = 1 << (63 - PLACE_BITS)


@njit(nogil=True, cache=True, inline="always")
def _sum(first, second, total):
    for c in range(total.shape[0]):
        total[c] = first[c] + second[c]


# Without numpy's error model every division checks for zero, and the loop is not vectorised.
@njit(nogil=True, cache=True, error_model="numpy")
def sparse_adam(table, first_moment, second_moment, rows, grad, at, more, step, lr, beta1, beta2, eps, weight_decay):
    """Lazy Adam (Kingma and Ba 2015) on the given distinct rows; bias correction by the global step (from 1).

    Args:
        table, first_moment, second_moment: float `[n, d]`, updated. rows: int64 `[r]`. grad: float `[g, d]`.
        at: int64 `[r]`, which of the gradients is a row's. more: int64 `[r]`, another to be added, or -1; None: no
            row has one. Numba compiles a loop of its own for that.
        weight_decay: L2 coefficient, added to the gradient of these rows.
    """
    dtype = table.dtype.type
    total = np.empty(table.shape[1], table.dtype)
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
            prefetch_row(grad, at[i + _AHEAD])
            if more is not None and more[i + _AHEAD] >= 0:
                prefetch_row(grad, more[i + _AHEAD])
        row = rows[i]
        weight, first, second, gradient = table[row], first_moment[row], second_moment[row], grad[at[i]]
        if more is not None and more[i] >= 0:
            _sum(gradient, grad[more[i]], total)
            gradient = total
        for c in range(table.shape[1]):
            g = gradient[c] + decay * weight[c]
            m = first[c] + rate1 * (g - first[c])
            v = second[c] + rate2 * (g * g - second[c])
            first[c] = m
            second[c] = v
            weight[c] -= step_size * m / (np.sqrt(v) + epsilon)


@njit(nogil=True, cache=True, error_model="numpy")
def sparse_adagrad(table, squares, rows, grad, at, more, lr, eps, weight_decay):
    """Adagrad (Duchi et al. 2011, diagonal) on the given distinct rows, as `torch.optim.Adagrad` on sparse gradients.

    Args:
        table, squares: float `[n, d]`, updated; squares are the sums of squared gradients. rows: int64 `[r]`.
        grad: float `[g, d]`. at, more: see `sparse_adam`.
        weight_decay: L2 coefficient, added to the gradient of these rows.
    """
    dtype = table.dtype.type
    total = np.empty(table.shape[1], table.dtype)
    rate, epsilon, decay = dtype(lr), dtype(eps), dtype(weight_decay)
    n = rows.shape[0]
    for i in range(n):
        if i + _AHEAD < n:
            prefetch_row(table, rows[i + _AHEAD])
            prefetch_row(squares, rows[i + _AHEAD])
            prefetch_row(grad, at[i + _AHEAD])
            if more is not None and more[i + _AHEAD] >= 0:
                prefetch_row(grad, more[i + _AHEAD])
        row = rows[i]
        weight, square, gradient = table[row], squares[row], grad[at[i]]
        if more is not None and more[i] >= 0:
            _sum(gradient, grad[more[i]], total)
            gradient = total
        for c in range(table.shape[1]):
            g = gradient[c] + decay * weight[c]
            s = square[c] + g * g
            square[c] = s
            weight[c] -= rate * g / (np.sqrt(s) + epsilon)


@njit(nogil=True, cache=True)
def sparse_sgd(table, rows, grad, at, more, lr, weight_decay):
    """table[row] -= lr * (gradient + weight_decay * table[row]) on the given distinct rows; more: see `sparse_adam`."""
    dtype = table.dtype.type
    total = np.empty(table.shape[1], table.dtype)
    rate, decay = dtype(lr), dtype(weight_decay)
    n = rows.shape[0]
    for i in range(n):
        if i + _AHEAD < n:
            prefetch_row(table, rows[i + _AHEAD])
            prefetch_row(grad, at[i + _AHEAD])
            if more is not None and more[i + _AHEAD] >= 0:
                prefetch_row(grad, more[i + _AHEAD])
        weight, gradient = table[rows[i]], grad[at[i]]
        if more is not None and more[i] >= 0:
            _sum(gradient, grad[more[i]], total)
            gradient = total
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
def collect_rows(nodes, low, places, base, stamp, slot, n, rows, at, more, repeated):
    """Take in a worker's gradients; call it for the workers in rank order, then move the rows by them.

    Args:
        nodes: distinct, int64 `[k]`; low: of a node's row, what to take from its id. places: int64 `[k]`, where the
            gradients are, less `base`.
        stamp: of this step, from 1; larger than of any earlier one with this slot.
        slot: int64, 0 at first; by row: its place among the rows, with the stamp, so that nothing is cleared.
        n: how many rows there are so far. rows: int64 `[r]`, written from n on: those that are new.
        at, more: int64 `[r]`, written: each row's first gradient, and its last one where it has more, else -1.
        repeated: int64 `[k, 2]`, written: gradients to be added to a row's first one before anything else is (see
            `add_repeated`), and its first one.

    Returns:
        How many rows there are now, and how many pairs are in `repeated`.
    """
    m = 0
    high = np.int64(stamp) << PLACE_BITS
    for i in range(nodes.shape[0]):
        if i + _GATHER_AHEAD < nodes.shape[0]:
            prefetch(slot.ctypes.data + (nodes[i + _GATHER_AHEAD] - low) * slot.itemsize)
        row = nodes[i] - low
        s = slot[row]
        if s < high:
            slot[row] = high | n
            rows[n], at[n], more[n] = row, places[i] + base, -1
            n += 1
            continue
        k = s - high
        if more[k] >= 0:
            repeated[m, 0], repeated[m, 1] = at[k], more[k]
            m += 1
        more[k] = places[i] + base
    return n, m


@njit(nogil=True, cache=True)
def add_repeated(repeated, grad):
    """Add gradients of repeated rows to the first ones, in the order given.

    Args:
        repeated: int64 `[m, 2]`, as `collect_rows` gives it. grad: float `[g, d]`, updated.
    """
    m = repeated.shape[0]
    for i in range(m):
        if i + _AHEAD < m:
            prefetch_row(grad, repeated[i + _AHEAD, 0])
            prefetch_row(grad, repeated[i + _AHEAD, 1])
        target, source = grad[repeated[i, 0]], grad[repeated[i, 1]]
        for c in range(grad.shape[1]):
            target[c] += source[c]
