"""The student's loss against loops in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from distgnn.config import DistillConfig
from distgnn.distillation.objective import ranking_loss, student_loss
from distgnn.distributed.process_group import WorkerGroup
from tests.small_training import adjacency
from tests.unit.distillation.test_batches import GRAPH, WHOLE, batch

DIM, TEACHER_DIM = 4, 6
CONFIG = DistillConfig(temperature=0.7, label_weight=0.4)
LABEL_TEMPERATURE = 0.2


@pytest.fixture
def group() -> Iterator[WorkerGroup]:
    group = WorkerGroup.join(0, 1)
    yield group
    group.leave()


def log_softmax(scores: list[float]) -> list[float]:
    total = math.log(sum(math.exp(s) for s in scores))
    return [s - total for s in scores]


def cross_entropy(teacher: list[float], student: list[float]) -> float:
    target = [math.exp(t) for t in log_softmax(teacher)]
    return -sum(t * s for t, s in zip(target, log_softmax(student), strict=True))


def scores() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student, teacher `[7, 9]` and which are valid: none of edge 2, one of edge 4, all of edge 5."""
    rng = np.random.default_rng(0)
    valid = rng.random((7, 9)) < 0.6
    valid[2], valid[4], valid[5] = False, np.arange(9) == 3, True
    student, teacher = (torch.from_numpy(2 * rng.normal(size=(7, 9))) for _ in range(2))
    return student, teacher, torch.from_numpy(valid)


def test_ranking_loss_is_the_loop() -> None:
    student, teacher, valid = scores()
    expected = 0.0
    for s, t, v in zip(student.tolist(), teacher.tolist(), valid.tolist(), strict=True):
        open_ = [c for c in range(9) if v[c]]
        if open_:
            expected += cross_entropy([t[c] for c in open_], [s[c] for c in open_])
    assert ranking_loss(student, teacher, valid, 21).item() == pytest.approx(expected / 21, rel=1e-12)


def test_ranking_loss_has_the_gradient_of_its_value() -> None:
    student, teacher, valid = scores()
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: ranking_loss(s, teacher, valid, 21), (student,))
    ranking_loss(student, teacher, valid, 21).backward()
    assert (student.grad[~valid] == 0).all()
    assert (student.grad[2] == 0).all()


def test_ranking_loss_of_no_edge_is_zero() -> None:
    empty = torch.zeros((0, 9), requires_grad=True)
    loss = ranking_loss(empty, empty.detach(), torch.zeros((0, 9), dtype=torch.bool), 21)
    assert loss.item() == 0
    loss.backward()


def tables() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student rows by node id, teacher rows by node id and teacher items by stable id; float64."""
    rng = np.random.default_rng(1)
    student = torch.from_numpy(rng.normal(size=(GRAPH.n_nodes, DIM)))
    teacher = torch.from_numpy(rng.normal(size=(GRAPH.n_nodes, TEACHER_DIM)))
    return student, teacher, teacher[torch.from_numpy(GRAPH.node_id[GRAPH.n_users :].astype(np.int64))]


@pytest.mark.parametrize("step", [0, 2])
def test_student_loss_is_the_loop(group: WorkerGroup, step: int) -> None:
    student, teacher, items = tables()
    made = batch(step)
    loss = student_loss(CONFIG, LABEL_TEMPERATURE, made, student[made.nodes], teacher, items, group)
    edge, n_users = adjacency(GRAPH), GRAPH.n_users
    shared = [int(GRAPH.node_id[n_users + i]) for i in made.shared_item]
    batch_items = made.nodes[made.item].tolist()
    expected = 0.0
    for b, user in enumerate(made.nodes[made.user].tolist()):
        listed = [int(GRAPH.node_id[n_users + i]) for i in made.listed_item[b] if i >= 0]
        candidates = listed + [i for i in shared if not edge[user, i]]
        if candidates:
            t, s = ([float(x[user] @ x[i]) / CONFIG.temperature for i in candidates] for x in (teacher, student))
            expected += cross_entropy(t, s)
        columns = [c for c, i in enumerate(batch_items) if c == b or not edge[user, i]]
        logits = log_softmax([float(student[user] @ student[batch_items[c]]) / LABEL_TEMPERATURE for c in columns])
        expected -= CONFIG.label_weight * logits[columns.index(b)]
    assert loss.item() == pytest.approx(expected / made.global_size, rel=1e-10)


def test_an_empty_share_is_tied_to_its_rows(group: WorkerGroup) -> None:
    student, teacher, items = tables()
    made = batch(0, np.array([0, GRAPH.n_nodes - 4, GRAPH.n_nodes]), 1)
    assert WHOLE[1] == GRAPH.n_nodes
    rows = student[made.nodes].requires_grad_()
    # A group of one gathers nothing from others, and no edge here needs a column.
    made = type(made)(**{**{n: getattr(made, n) for n in made.__slots__}, "column_order": made.column_order[:0]})
    loss = student_loss(CONFIG, LABEL_TEMPERATURE, made, rows, teacher[-4:], items, group)
    assert loss.item() == 0
    loss.backward()
    assert rows.grad is not None
    assert (rows.grad == 0).all()
