"""Evaluation shared out over two real gloo processes gives the metrics, and the errors, of one process."""

import json

import numpy as np
import pytest
import torch.distributed as dist

from distgnn.graph import Topology
from distgnn.training.evaluation import build_ranking_task, evaluate_ranking
from distgnn.types import UserError
from tests.two_workers import run_two_workers

N_USERS, N_ITEMS, MEMORY = 120, 150, 1 << 22


def problem():
    rng = np.random.default_rng(11)
    drawn = rng.random((N_USERS, N_ITEMS))
    train, test = np.nonzero(drawn < 0.08), np.nonzero(drawn > 0.96)
    scores = rng.integers(0, 40, (N_USERS, N_ITEMS)).astype(np.float32)
    return Topology.from_edges(*train, N_USERS, N_ITEMS), test, scores


class ExchangedScorer:
    """Every block's scores come from rank 0 by a collective, as payloads of sharded tables do."""

    def __init__(self, scores, task, group):
        self.scores, self.task, self.group = scores, task, group

    def item_blocks(self):
        for start in range(0, N_ITEMS, 32):
            items = np.arange(start, min(start + 32, N_ITEMS))
            message = [self.scores[:, items] if self.group is None or dist.get_rank() == 0 else None]
            if self.group is not None:
                dist.broadcast_object_list(message, src=0, group=self.group)
            yield items, message[0]

    def score(self, start, stop, payload):
        return payload[self.task.users[start:stop]]


def evaluate(node_range, group, spoil=None, memory=MEMORY):
    """(metrics, counts) or the error's text."""
    topology, test, scores = problem()
    task = build_ranking_task(topology, *test, node_range=node_range)
    if spoil is not None:
        scores[spoil, 3] = np.nan
    try:
        result = evaluate_ranking(ExchangedScorer(scores, task, group), task, memory_bytes=memory, group=group)
    except UserError as error:
        return str(error)
    return result.metrics, [result.n_evaluated, result.n_dropped, len(result.top_items)]


def worker(rank, path, bounds):
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    group = dist.new_group(backend="gloo")
    mine = (bounds[rank], bounds[rank + 1])
    answers = [
        evaluate(mine, group),
        evaluate((0, N_USERS) if rank == 0 else (N_USERS, N_USERS + N_ITEMS), group),  # a worker without users
        evaluate(mine, group, spoil=2),  # a user of rank 0
        evaluate(mine, group, memory=MEMORY if rank == 0 else 100),
    ]
    (path / f"{rank}.json").write_text(json.dumps(answers))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluation")
    bounds = (0, 50, N_USERS + N_ITEMS)
    run_two_workers(worker, path, bounds)
    return [json.loads((path / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", [0, 1], ids=["uneven", "one worker without users"])
def test_metrics_equal_one_process(answers, case):
    metrics, (n_evaluated, n_dropped, n_lists) = evaluate(None, None)
    sizes = 0
    for rank in range(2):
        got, (evaluated, dropped, lists) = answers[rank][case]
        assert got == pytest.approx(metrics, abs=1e-12)
        assert (evaluated, dropped) == (n_evaluated, n_dropped)
        sizes += lists
    assert sizes == n_lists


def test_every_worker_learns_of_one_workers_trouble(answers):
    for rank in range(2):
        assert "1 scores are not finite" in answers[rank][2]
        assert "is too little" in answers[rank][3]
