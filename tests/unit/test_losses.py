"""Losses against loops."""

from __future__ import annotations

import math

import pytest
import torch

from distgnn.losses import bpr, pair_sum, softmax_cross_entropy, uniformity_part


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
