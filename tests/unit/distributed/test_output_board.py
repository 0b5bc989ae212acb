"""Outputs in shared memory: what is gathered and given back is what messages carry, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from distgnn.distributed.exchange import all_gather_rows
from distgnn.distributed.output_board import OutputBoard
from distgnn.distributed.process_group import WorkerGroup
from tests.two_workers import run_two_workers

DIM, CAPACITY = 5, 12
# The last one does not fit, and goes by messages.
SIZES = [[3, 7], [0, 6], [8, 0], [6, 6], [1, 1], [9, 9]]


def rows_of(rank: int, sizes: list[int], turn: int) -> torch.Tensor:
    values = np.random.default_rng([rank, turn]).normal(size=(sizes[rank], DIM)).astype(np.float32)
    return torch.from_numpy(values).requires_grad_()


def compare(rank: int, folder: Path) -> None:
    group = WorkerGroup.join(rank, 2, init_method=f"file://{folder}/meet", timeout_seconds=60)
    board = OutputBoard.of(CAPACITY, DIM, torch.float32, group)
    assert board is not None
    met = 0
    meet = board._meet

    def counted(name: str) -> None:
        nonlocal met
        met += 1
        meet(name)

    board._meet = counted  # type: ignore[method-assign]
    for turn in range(60):
        sizes = SIZES[turn % len(SIZES)]
        results = []
        for where in (board, None):
            rows = rows_of(rank, sizes, turn)
            everyone = all_gather_rows(rows, sizes, group, where)
            weights = torch.from_numpy(np.random.default_rng([9, rank, turn]).normal(size=everyone.shape))
            if turn % 3:  # an evaluation gathers, and gives nothing back
                (everyone * weights.float()).sum().backward()
            results.append((everyone.detach(), rows.grad))
        (gathered, grad), (expected, expected_grad) = results
        assert torch.equal(gathered, expected)
        assert torch.equal(gathered, torch.cat([rows_of(r, sizes, turn) for r in range(2)]))
        assert (grad is None) == (expected_grad is None)
        assert grad is None or (expected_grad is not None and torch.equal(grad, expected_grad))
    assert met == sum(1 + bool(turn % 3) for turn in range(60) if sum(SIZES[turn % len(SIZES)]) <= CAPACITY)
    group.leave()


def test_the_board_gives_what_messages_give(tmp_path: Path) -> None:
    run_two_workers(compare, tmp_path)
