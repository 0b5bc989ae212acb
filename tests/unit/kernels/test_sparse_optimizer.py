"""Row-wise optimizers against torch's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distgnn.kernels.sparse_optimizer import (
    PLACE_BITS,
    add_repeated,
    collect_rows,
    gather_rows,
    gather_rows_to,
    sparse_adagrad,
    sparse_adam,
    sparse_sgd,
)
from tests.unit.kernels.rerun import IS_RERUN, MODES, rerun


def test_lazy_adam_is_torch_sparse_adam() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(20, 5))
    parameter = torch.nn.Parameter(torch.from_numpy(table.copy()))
    optimizer = torch.optim.SparseAdam([parameter], lr=0.03)
    first, second = np.zeros_like(table), np.zeros_like(table)
    for step in range(1, 8):
        rows = rng.permutation(20)[: rng.integers(1, 12)]
        grad = rng.normal(size=(len(rows), 5))
        sparse_adam(table, first, second, rows, grad, np.arange(len(rows)), None, step, 0.03, 0.9, 0.999, 1e-8, 0.0)
        parameter.grad = torch.sparse_coo_tensor(
            torch.from_numpy(rows)[None], torch.from_numpy(grad), (20, 5), check_invariants=True
        )
        optimizer.step()
        np.testing.assert_allclose(table, parameter.detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_adagrad_is_torch_adagrad_on_sparse_gradients() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(20, 5))
    start = table.copy()
    parameter = torch.nn.Parameter(torch.from_numpy(table.copy()))
    optimizer = torch.optim.Adagrad([parameter], lr=0.03, eps=1e-8)
    squares = np.zeros_like(table)
    for _ in range(7):
        rows = rng.permutation(19)[: rng.integers(1, 12)]
        grad = rng.normal(size=(len(rows), 5))
        sparse_adagrad(table, squares, rows, grad, np.arange(len(rows)), None, 0.03, 1e-8, 0.0)
        parameter.grad = torch.sparse_coo_tensor(
            torch.from_numpy(rows)[None], torch.from_numpy(grad), (20, 5), check_invariants=True
        )
        optimizer.step()
        np.testing.assert_allclose(table, parameter.detach().numpy(), rtol=1e-12, atol=1e-14)
    assert (table[19] == start[19]).all() and (squares[19] == 0).all()
    assert (table[:19] != start[:19]).all()


def test_adagrads_decay_is_torchs_where_every_row_is_touched() -> None:
    """Sparse gradients have no decay in torch; with all rows touched the dense rule is the same."""
    rng = np.random.default_rng(3)
    table = rng.normal(size=(6, 4))
    parameter = torch.nn.Parameter(torch.from_numpy(table.copy()))
    optimizer = torch.optim.Adagrad([parameter], lr=0.1, eps=1e-6, weight_decay=0.2)
    squares = np.zeros_like(table)
    for _ in range(5):
        grad = rng.normal(size=(6, 4))
        sparse_adagrad(table, squares, np.arange(6), grad[::-1].copy(), np.arange(6)[::-1], None, 0.1, 1e-6, 0.2)
        parameter.grad = torch.from_numpy(grad)
        optimizer.step()
    np.testing.assert_allclose(table, parameter.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_sgd_moves_the_touched_rows_and_decays_them_alone() -> None:
    table = np.ones((4, 2))
    sparse_sgd(table, np.array([1, 3]), np.array([[0.1, 0.2], [0.5, 0.5]]), np.array([1, 1]), None, 0.1, 0.2)
    np.testing.assert_allclose(table, [[1, 1], [0.93, 0.93], [1, 1], [0.93, 0.93]])


def test_repeated_rows_are_summed_in_the_workers_order() -> None:
    """Of three workers' rows: to the bit what adding up in rank order gives."""
    rng = np.random.default_rng(1)
    asked = [rng.permutation(60)[:n] for n in (45, 50, 40)]
    grad = rng.normal(size=(140, 3)).astype(np.float32)
    places = [rng.permutation(45), 45 + rng.permutation(50), 95 + rng.permutation(40)]
    expected: dict[int, np.ndarray] = {}
    for worker in range(3):
        for row, at in zip(asked[worker].tolist(), places[worker], strict=True):
            expected[row] = expected[row] + grad[at] if row in expected else grad[at].copy()
    slot = np.arange(60) % 3 << PLACE_BITS | 5  # what steps 0, 1 and 2 have left
    (rows, at, more), n = np.empty((3, 60), np.int64), 0
    before = grad.copy()
    for worker in range(3):
        repeated = np.empty((len(asked[worker]), 2), np.int64)
        nodes, base = asked[worker] + 7, worker - 5
        n, m = collect_rows(nodes, 7, places[worker] - base, base, 3, slot, n, rows, at, more, repeated)
        assert (m > 0) == (worker == 2)
        add_repeated(repeated[:m], grad)
    assert sorted(rows[:n].tolist()) == sorted(expected)
    for row, first, last in zip(rows[:n].tolist(), at[:n], more[:n], strict=True):
        assert ((grad[first] + grad[last] if last >= 0 else grad[first]) == expected[row]).all()
    assert (grad[95:] == before[95:]).all()
    table = np.zeros((60, 3), np.float32)
    sparse_sgd(table, rows[:n], grad, at[:n], more[:n], -1.0, 0.0)
    for row in range(60):
        assert (table[row] == expected.get(row, 0)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [1, 5, 64])
@pytest.mark.parametrize("n", [0, 1, 30])
def test_gathered_rows_are_numpys(n: int, d: int, dtype: str) -> None:
    rng = np.random.default_rng(2)
    table, rows = rng.normal(size=(40, d)).astype(dtype), rng.integers(0, 40, n)
    out = np.full((n, d), np.nan, dtype)
    gather_rows(table, rows, out)
    assert (out == table[rows]).all()
    out[:] = np.nan
    for positions in np.array_split(rng.permutation(n), 2):
        gather_rows_to(table, rows, positions, out)
    assert (out == table[rows]).all()


def test_float32_adam_is_the_rule_in_float32() -> None:
    """Element by element in float32: rows ahead of their turn, and the tail, move by the same arithmetic."""
    rng = np.random.default_rng(4)
    table, first, second, grad = rng.normal(size=(4, 30, 7)).astype(np.float32)
    second = np.abs(second)
    rows = rng.permutation(30)[:11]
    expected = [a.copy() for a in (table, first, second)]
    size = np.float32(0.02 * np.sqrt(1 - 0.999**3) / (1 - 0.9**3))
    for i, row in enumerate(rows):
        weight, m, v = (a[row] for a in expected)
        m += np.float32(1 - 0.9) * (grad[i] - m)
        v += np.float32(1 - 0.999) * (grad[i] * grad[i] - v)
        weight -= size * m / (np.sqrt(v) + np.float32(1e-8))
    sparse_adam(table, first, second, rows, grad, np.arange(11), None, 3, 0.02, 0.9, 0.999, 1e-8, 0.0)
    for got, want in zip((table, first, second), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.skipif(IS_RERUN, reason="is the rerun itself")
@pytest.mark.parametrize("mode", MODES)
def test_same_answers_unjitted_and_with_bounds_checked(mode: str, tmp_path: Path) -> None:
    rerun(__file__, mode, tmp_path)
