"""The student's loss: the teacher's ranking of candidates, and the true edges among the batch's items.

ranking  cross-entropy from the teacher's softmax to the student's over an edge's candidates: entries of its user's
         list, and items shared by the step (listwise, as ListNet of Cao et al. 2007, with the teacher's scores)
labels   in-batch softmax of the edge's own item, as the teacher was trained

Both are sums over the share divided by the global batch size, so gradients are summed over workers.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from distgnn.config import DistillConfig
from distgnn.distillation.batches import StudentBatch
from distgnn.distributed.device_memory import move
from distgnn.distributed.exchange import all_gather_rows
from distgnn.distributed.process_group import WorkerGroup
from distgnn.losses import softmax_cross_entropy


def ranking_loss(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor, global_size: int) -> torch.Tensor:
    """Sum over edges of -sum_c softmax(teacher)_c log softmax(student)_c, divided by B.

    Args:
        student, teacher: scores over temperature, `[b, C]`. valid: bool `[b, C]`; an edge without any adds nothing.
    """
    some = valid.any(1, keepdim=True)
    open_ = valid | ~some  # a row of -inf has no softmax
    target = F.softmax(teacher.masked_fill(~open_, -torch.inf), 1)
    log_likelihood = F.log_softmax(student.masked_fill(~open_, -torch.inf), 1).masked_fill(~valid, 0.0)
    return -(target * log_likelihood).sum() / global_size


def student_loss(
    config: DistillConfig,
    label_temperature: float,
    batch: StudentBatch,
    rows: torch.Tensor,
    teacher_own: torch.Tensor,
    teacher_items: torch.Tensor,
    group: WorkerGroup,
) -> torch.Tensor:
    """This worker's part of the global loss, tied to all rows even where the share is empty; a collective.

    Args:
        rows: student rows of `batch.nodes`, `[n, dim]`.
        teacher_own: unit vectors of the worker's own nodes. teacher_items: by stable id.
    """
    device = rows.device

    def index(array: np.ndarray) -> torch.Tensor:
        return move(torch.from_numpy(np.ascontiguousarray(array, np.int64)), device)

    user, item = F.embedding(index(batch.user), rows), F.embedding(index(batch.item), rows)
    gathered = all_gather_rows(item, batch.share_sizes.tolist(), group)
    logits = user @ gathered[index(batch.column_order)].T / label_temperature
    known = index(batch.batch_known)
    mask = torch.zeros(logits.shape, dtype=torch.bool, device=device)
    mask[known[0], known[1]] = True
    labels = softmax_cross_entropy(logits.masked_fill(mask, -torch.inf), index(batch.share), batch.global_size)

    t_user = F.embedding(index(batch.own_user), teacher_own)
    listed_item = index(batch.listed_item)
    t_listed = (t_user[:, None] * F.embedding(listed_item.clamp(min=0), teacher_items)).sum(2)
    s_listed = (user[:, None] * F.embedding(index(batch.listed), rows)).sum(2)
    t_shared = t_user @ teacher_items[index(batch.shared_item)].T
    s_shared = user @ F.embedding(index(batch.shared), rows).T
    valid = torch.ones_like(s_shared, dtype=torch.bool)
    known = index(batch.shared_known)
    valid[known[0], known[1]] = False
    ranking = ranking_loss(
        torch.cat([s_listed, s_shared], 1) / config.temperature,
        torch.cat([t_listed, t_shared], 1) / config.temperature,
        torch.cat([listed_item >= 0, valid], 1),
        batch.global_size,
    )
    return ranking + config.label_weight * labels + 0.0 * rows.sum()
