"""Training objectives: every one is a sum over the worker's share divided by the global batch size.

So gradients are summed over workers, and no factor W stands anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 64 << 20  # of logits that `in_batch_softmax` holds at once, at most
CPU_CHUNK_BYTES = 2 << 20  # for each thread of a CPU


def bpr(positive: torch.Tensor, negative: torch.Tensor, valid: torch.Tensor, global_size: int) -> torch.Tensor:
    """Bayesian personalised ranking (Rendle et al. 2009): mean over negatives of softplus(negative - positive).

    Args:
        positive: scores `[b]`. negative: scores `[b, K]`. valid: bool `[b, K]`, false where there is no such negative.
    """
    each = F.softplus(negative - positive[:, None]) * valid
    return (each.sum(1) / valid.sum(1).clamp(min=1)).sum() / global_size


def softmax_cross_entropy(logits: torch.Tensor, target: torch.Tensor, global_size: int) -> torch.Tensor:
    """Sampled softmax (Bengio and Senecal 2008): -log softmax of the target's column.

    Args:
        logits: `[b, C]`, -inf where masked. target: int64 `[b]`.
    """
    return F.cross_entropy(logits, target, reduction="sum") / global_size


@dataclass(frozen=True)
class ColumnRules:
    """What changes a row's scores of the columns, on the device of the scores.

    Attributes:
        masked: `(row, column)` int64 `[2, m]` that count as absent, rows ascending.
        subtracted: of every column's score, `[C]`, or None.
        row_time, column_time: int64 `[b]` and `[C]`; columns later than the row count as absent. Or None.
    """

    masked: torch.Tensor
    subtracted: torch.Tensor | None = None
    row_time: torch.Tensor | None = None
    column_time: torch.Tensor | None = None

    def apply(self, logits: torch.Tensor, start: int, masked: torch.Tensor) -> None:
        """To scores `[r, C]` of the rows from `start` on, in place; masked: the pairs of these rows."""
        if self.subtracted is not None:
            logits -= self.subtracted
        logits[masked[0] - start, masked[1]] = -torch.inf
        if self.row_time is not None and self.column_time is not None:
            own = self.row_time[start : start + len(logits)]
            logits.masked_fill_(self.column_time[None, :] > own[:, None], -torch.inf)


class _InBatchSoftmax(torch.autograd.Function):
    """Chunk by chunk of rows, with the gradients: they are the loss's up to a factor that comes later."""

    @staticmethod
    def forward(ctx, user, gathered, order, target, rules, temperature, chunk_rows):  # type: ignore[no-untyped-def]
        wanted = any(ctx.needs_input_grad)
        columns = gathered if order is None else gathered.index_select(0, order)
        grad_user = torch.empty_like(user)
        grad_columns = torch.zeros_like(columns.T, memory_format=torch.contiguous_format)  # so products are faster
        total = user.new_zeros(())
        starts = range(0, len(user), chunk_rows)
        if len(starts) > 1:  # else nothing waits for a GPU
            bounds = torch.searchsorted(rules.masked[0].contiguous(), torch.tensor(starts, device=user.device)).tolist()
        else:
            bounds = [0]
        bounds.append(rules.masked.shape[1])
        in_place = user.device.type == "cpu"  # there it reads a row before it writes it
        room = user.new_empty((min(chunk_rows, len(user)), len(columns)))
        for chunk, start in enumerate(starts):
            rows = slice(start, start + chunk_rows)
            logits = room[: len(user[rows])]
            torch.mm(user[rows] / temperature, columns.T, out=logits)
            rules.apply(logits, start, rules.masked[:, bounds[chunk] : bounds[chunk + 1]])
            own = target[rows, None]
            largest, score = logits.amax(1), logits.gather(1, own)[:, 0]
            share = torch.softmax(logits, 1, out=logits if in_place else None)
            # The largest score's share is 1 / sum of exp(score - largest).
            total += (largest - score - share.amax(1).log()).sum()
            if wanted:
                share.scatter_add_(1, own, share.new_full(own.shape, -1.0))
                torch.mm(share, columns, out=grad_user[rows])
                grad_columns.addmm_(user[rows].T, share)
        if wanted:
            grad_gathered = torch.empty_like(gathered)
            if order is None:
                grad_gathered.copy_(grad_columns.T)
            else:
                grad_gathered.index_copy_(0, order, grad_columns.T.contiguous())
            ctx.save_for_backward(grad_user.div_(temperature), grad_gathered.div_(temperature))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        grad_user, grad_gathered = ctx.saved_tensors
        return grad_user * grad, grad_gathered * grad, None, None, None, None, None


def most_logit_bytes(device: torch.device) -> int:
    """What `in_batch_softmax` holds of logits at once: on CPUs what stays in the second cache level of its threads."""
    if device.type != "cpu":
        return CHUNK_BYTES
    return min(CHUNK_BYTES, CPU_CHUNK_BYTES * torch.get_num_threads())


def in_batch_softmax(
    user: torch.Tensor,
    gathered: torch.Tensor,
    target: torch.Tensor,
    rules: ColumnRules,
    temperature: float,
    global_size: int,
    *,
    order: torch.Tensor | None = None,
    chunk_bytes: int | None = None,
) -> torch.Tensor:
    """Sampled softmax whose logits are inner products, with memory for some of them and not for all.

    Args:
        user: `[b, d]`. gathered: `[C, d]`. target: own column of each row, int64 `[b]`; never masked.
        order: int64 `[C]`, which of the gathered each column is, every one once; None: the columns as they are.
        chunk_bytes: of logits at once; None: see `most_logit_bytes`.
    """
    chunk_bytes = most_logit_bytes(user.device) if chunk_bytes is None else chunk_bytes
    most = max(1, chunk_bytes // max(1, len(gathered) * user.element_size()))
    chunk_rows = math.ceil(len(user) / max(1, math.ceil(len(user) / most))) or 1  # all about as long
    total: torch.Tensor = _InBatchSoftmax.apply(user, gathered, order, target, rules, temperature, chunk_rows)
    return total / global_size


def alignment(user: torch.Tensor, item: torch.Tensor, global_size: int) -> torch.Tensor:
    """DirectAU's first part (Wang et al. 2022, eq. 4): mean squared distance of the edges' unit vectors `[b, d]`."""
    return (user - item).square().sum() / global_size


def pair_sum(own: torch.Tensor, everyone: torch.Tensor, first: int) -> torch.Tensor:
    """Sum of exp(-2 |x - y|^2) over the pairs of an own row and another row.

    Args:
        own: `[m, d]`, which are rows `first` to `first + m` of everyone. everyone: `[n, d]`.
    """
    distance = own.square().sum(1)[:, None] + everyone.square().sum(1)[None, :] - 2 * (own @ everyone.T)
    itself = torch.zeros(distance.shape, dtype=torch.bool, device=own.device)
    itself.diagonal(first).fill_(True)
    return torch.exp(-2 * distance).masked_fill(itself, 0.0).sum()


def uniformity_part(part: torch.Tensor, total: torch.Tensor, n: int) -> torch.Tensor:
    """This worker's part of log mean exp(-2 |x - y|^2) over the pairs of n distinct rows (Wang et al. 2022, eq. 5).

    A logarithm of a sum has no parts: values are split as the sums are, and every gradient is divided by the whole sum,
    so that values and gradients add up to the whole over the workers.

    Args:
        part: its `pair_sum`. total: over all workers, without gradient. n: rows; a single one is in no pair.
    """
    if n < 2:
        return 0.0 * part
    value = part.detach() / total * torch.log(total / (n * (n - 1)))
    return value + (part - part.detach()) / total
