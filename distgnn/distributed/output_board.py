"""Outputs that a loss on the global batch takes from everybody, and their gradients, in memory that all workers map.

Each array has two halves, which gathers use in turn: who is a gather ahead writes to the other half, and nobody can be
two ahead of one that still reads.
"""

from __future__ import annotations

import numpy as np
import torch

from distgnn.distributed.device_memory import numpy_dtype
from distgnn.distributed.process_group import WorkerGroup
from distgnn.distributed.shared_memory import Meeting, share_arrays
from distgnn.timeline import OUTPUT_GRADIENTS, OUTPUTS


class OutputBoard:
    """What `exchange.all_gather_rows` sends by messages, to the same bits.

    Attributes:
        capacity: rows of all workers together, at most.
    """

    def __init__(self, arrays: list[np.ndarray], group: WorkerGroup, meeting: Meeting) -> None:
        outputs, gradients = arrays
        self.group, self.capacity, self._meeting = group, outputs.shape[1], meeting
        self._outputs, self._gradients = torch.from_numpy(outputs), torch.from_numpy(gradients)
        self._half = self._half_back = 0

    @classmethod
    def of(cls, capacity: int, dim: int, dtype: torch.dtype, group: WorkerGroup) -> OutputBoard | None:
        """For so many rows `[capacity, dim]`; None where the workers share no host. A collective."""
        kind = numpy_dtype(dtype)
        parts = [((2, capacity, dim), kind), ((2, group.size, capacity, dim), kind)]
        shared = share_arrays(parts, group)
        return None if shared is None else cls(shared[0], group, shared[1])

    def takes(self, rows: torch.Tensor, sizes: list[int]) -> bool:
        """Whether there is room for rows `[sizes[rank], d]` of this worker and those of the others."""
        fits = sum(sizes) <= self.capacity and rows.shape[1] == self._outputs.shape[2]
        return fits and rows.dtype == self._outputs.dtype and rows.device.type == "cpu"

    def gather(self, rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """Rows of every worker in rank order `[sum(sizes), d]`; a collective.

        They lie on the board: the gather after the next one overwrites them.
        """
        start = sum(sizes[: self.group.rank])
        board = self._outputs[self._half]
        self._half = 1 - self._half
        board[start : start + len(rows)] = rows
        self._meet(OUTPUTS)
        return board[: sum(sizes)]

    def give_back(self, grad: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """Sum of everybody's gradients of this worker's rows `[sizes[rank], d]`, in rank order; a collective.

        Args:
            grad: this worker's, of the rows of all, `[sum(sizes), d]`.
        """
        rank = self.group.rank
        start = sum(sizes[:rank])
        stop = start + sizes[rank]
        board = self._gradients[self._half_back]
        self._half_back = 1 - self._half_back
        board[rank, :start] = grad[:start]
        board[rank, stop : len(grad)] = grad[stop:]
        self._meet(OUTPUT_GRADIENTS)
        total = grad[start:stop].clone() if rank == 0 else board[0, start:stop].clone()
        for other in range(1, self.group.size):
            total += grad[start:stop] if other == rank else board[other, start:stop]
        return total

    def _meet(self, name: str) -> None:
        with self.group.watch.collective(name):
            self._meeting.meet()
