"""Losses against loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distgnn.losses import ColumnRules, bpr, in_batch_softmax, pair_sum, softmax_cross_entropy, uniformity_part


def test_bpr_is_a_mean_over_the_negatives_that_there_are() -> None:
    positive = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    negative = torch.tensor([[0.1, 0.9], [5.0, -0.5], [7.0, 7.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True], [False, True], [False, False]])
    expected = 0.0
    for i in range(3):
        terms = [-math.log(1 / (1 + math.exp(negative[i, k] - positive[i]))) for k in range(2) if valid[i, k]]
        expected += sum(terms) / len(terms) if terms else 0.0
    assert bpr(positive, negative, valid, 10).item() == pytest.approx(expected / 10, rel=1e-12)


def test_a_missing_negative_sends_no_gradient() -> None:
    positive = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    negative = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    bpr(positive, negative, torch.tensor([[True, False], [False, False]]), 4).backward()
    assert positive.grad is not None and positive.grad.tolist() == [-0.125, 0.0]
    assert negative.grad is not None and negative.grad.tolist() == [[0.125, 0.0], [0.0, 0.0]]


def test_bpr_is_finite_far_out() -> None:
    positive, negative = torch.tensor([1e4, -1e4]), torch.tensor([[-1e4], [1e4]])
    assert bpr(positive, negative, torch.ones(2, 1, dtype=torch.bool), 1).item() == pytest.approx(2e4)


def test_softmax_is_minus_the_targets_log_share() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 0.5], [0.0, 2.0, -1.0]], dtype=torch.float64)
    expected = -math.log(math.exp(0.5) / (math.exp(1.0) + math.exp(0.5)))
    expected += -math.log(math.exp(2.0) / (1 + math.exp(2.0) + math.exp(-1.0)))
    assert softmax_cross_entropy(logits, torch.tensor([2, 1]), 8).item() == pytest.approx(expected / 8, rel=1e-12)


def test_a_row_of_its_target_alone_costs_nothing_and_moves_nothing() -> None:
    logits = torch.tensor([[-torch.inf, 3.0, -torch.inf]], requires_grad=True)
    loss = softmax_cross_entropy(logits, torch.tensor([1]), 1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and (logits.grad == 0).all()


def test_empty_shares_cost_nothing() -> None:
    no_rows = torch.zeros(0, requires_grad=True)
    assert bpr(no_rows, torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.bool), 5).item() == 0
    assert softmax_cross_entropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 5).item() == 0


def test_parts_of_uniformity_add_up_in_value_and_gradient() -> None:
    rows = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = rows.clone().requires_grad_()
    expected = torch.pdist(whole).square().mul(-2).exp().mean().log()
    expected.backward()
    split = rows.clone().requires_grad_()
    bounds = [0, 4, 4, 9]  # the second part is empty
    sums = [pair_sum(split[a:b], split, a) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    total = torch.stack(sums).sum().detach()
    parts = torch.stack([uniformity_part(s, total, 9) for s in sums])
    parts.sum().backward()
    assert parts.sum().item() == pytest.approx(expected.item(), rel=1e-12)
    assert whole.grad is not None and split.grad is not None
    torch.testing.assert_close(split.grad, whole.grad, rtol=1e-10, atol=1e-12)


def test_a_single_row_has_no_uniformity() -> None:
    row = torch.ones(1, 3, requires_grad=True)
    uniformity_part(pair_sum(row, row, 0), torch.tensor(0.0), 1).backward()
    assert row.grad is not None and row.grad.tolist() == [[0.0, 0.0, 0.0]]


def column_rules(
    rng: np.random.Generator, b: int, n: int, target: np.ndarray, *, logq: bool, times: bool
) -> ColumnRules:
    """Random rules that leave every row its own column."""
    mask = rng.random((b, n)) < 0.3
    mask[np.arange(b), target] = False
    masked = torch.from_numpy(np.stack(np.nonzero(mask)))
    column_time = rng.integers(0, 5, n)
    row_time = np.maximum(column_time[target], rng.integers(0, 5, b)) if n else np.zeros(b, np.int64)
    return ColumnRules(
        masked,
        torch.from_numpy(rng.normal(size=n)) if logq else None,
        torch.from_numpy(row_time) if times else None,
        torch.from_numpy(column_time) if times else None,
    )


def dense_softmax(
    user: torch.Tensor, columns: torch.Tensor, target: torch.Tensor, rules: ColumnRules, temperature: float
) -> torch.Tensor:
    """The whole matrix, and torch's cross entropy."""
    logits = user @ columns.T / temperature
    if rules.subtracted is not None:
        logits = logits - rules.subtracted
    mask = torch.zeros(logits.shape, dtype=torch.bool)
    mask[rules.masked[0], rules.masked[1]] = True
    if rules.row_time is not None and rules.column_time is not None:
        mask |= rules.column_time[None, :] > rules.row_time[:, None]
    return torch.nn.functional.cross_entropy(logits.masked_fill(mask, -torch.inf), target, reduction="sum")


@settings(max_examples=60, deadline=None)
@given(
    b=st.integers(0, 9),
    n=st.integers(1, 11),
    chunk=st.integers(1, 10),
    logq=st.booleans(),
    times=st.booleans(),
    ordered=st.booleans(),
    seed=st.integers(0, 99),
)
def test_softmax_in_chunks_is_the_dense_one(
    b: int, n: int, chunk: int, logq: bool, times: bool, ordered: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    user, columns = (torch.from_numpy(rng.normal(size=(m, 3))) for m in (b, n))
    target = rng.integers(0, n, b)
    rules = column_rules(rng, b, n, target, logq=logq, times=times)
    order = torch.from_numpy(rng.permutation(n)) if ordered else None
    found = []
    for chunked in (True, False):
        u, c = user.clone().requires_grad_(), columns.clone().requires_grad_()
        if chunked:
            own, limit = torch.from_numpy(target), chunk * n * 8
            loss = in_batch_softmax(u, c, own, rules, 0.4, 7, order=order, chunk_bytes=limit)
        else:
            ordered_columns = c if order is None else c[order]
            loss = dense_softmax(u, ordered_columns, torch.from_numpy(target), rules, 0.4) / 7
        (3 * loss).backward()
        found.append((loss.detach(), u.grad, c.grad))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_chunks_bound_the_memory_and_scores_may_be_large(monkeypatch: pytest.MonkeyPatch) -> None:
    user, columns = torch.full((40, 2), 1e4), torch.full((50, 2), 1e4)
    rules = ColumnRules(torch.zeros(2, 0, dtype=torch.int64))
    largest = 0
    real = torch.softmax

    def watched(logits: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, logits.numel() * logits.element_size())
        return real(logits, *arguments, **named)

    monkeypatch.setattr(torch, "softmax", watched)
    loss = in_batch_softmax(user, columns, torch.arange(40), rules, 0.1, 40, chunk_bytes=50 * 4 * 7)
    assert loss.item() == pytest.approx(np.log(50), rel=1e-5)
    assert 0 < largest <= 50 * 4 * 7
