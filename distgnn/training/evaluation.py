"""Full-catalogue ranking evaluation: every item scored, seen items masked, memory bounded.

for each block of items:            every worker passes over all of them (payloads may be moved by collectives)
    for each chunk of my users:     scores -> mask seen -> running top-k, first target
                                    (inner products: tile by tile, see `distgnn.training.product_ranking`)
second pass, if some user's first target lies below the top-k: count the items ahead of it (exact MRR)
metrics' sums and the items' exposure are added up over the workers
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from distgnn import beat, metrics
from distgnn.graph import Topology
from distgnn.kernels.ranking import count_ahead, mask_seen, update_best_target, update_top_k
from distgnn.training.product_ranking import FirstTargets, InnerProducts, ProductRanking, Rows
from distgnn.types import UserError

_CHUNK_BYTES = 8 << 20  # scores of a chunk of users, so that they are ranked out of the cache
_MIN_ROWS = 64  # below it the scorer's matrix product is slow; memory_bytes goes before
_METRIC_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class RankingTask:
    """The users that one worker ranks for, and what is right for them.

    Attributes:
        users: stable ids of users with at least one target, int64 `[n]`.
        seen_indptr, seen_items: int64 CSR of the stable items to mask, ascending within a row.
        target_indptr, target_items: int64 CSR of the relevant stable items, ascending, none of them seen.
        n_items: size of the catalogue.
        item_degree: training edges of every item, int64 `[n_items]`.
        user_degree: training edges of `users`, int64 `[n]`.
        n_users_without_targets: of this worker's users, those left out.
        n_seen_targets: targets left out since the user has the item already.
    """

    users: np.ndarray
    seen_indptr: np.ndarray
    seen_items: np.ndarray
    target_indptr: np.ndarray
    target_items: np.ndarray
    n_items: int
    item_degree: np.ndarray
    user_degree: np.ndarray
    n_users_without_targets: int
    n_seen_targets: int = 0


class Scorer(Protocol):
    """What is to be evaluated."""

    def item_blocks(self) -> Iterator[tuple[np.ndarray, Any]]:
        """Blocks (stable items int64 `[m]`, payload) that hold every item once; may be asked for twice.

        Of a payload `InnerProducts` the scores are made here, much faster; `score` is not asked for them. Collectives
        may be made: every worker passes over all of it, also without users.
        """

    def score(self, start: int, stop: int, payload: Any) -> np.ndarray:
        """Scores float32 or float64 `[stop - start, m]` of task.users[start:stop]; the caller may write into them."""


@dataclass(frozen=True, slots=True)
class RankingResult:
    """Metrics over the users of all workers (see `distgnn.metrics`), and this worker's lists.

    Attributes:
        metrics: name -> value; a slice without users is left out.
        top_items: stable items of this worker's users, int64 `[n, max(ks)]`, best first, -1 where there are no more.
        n_evaluated, n_dropped: users with and without targets, over all workers.
        n_seen_targets: targets left out as already seen, over all workers.
        seconds: wall time on this worker.
    """

    metrics: dict[str, float]
    top_items: np.ndarray
    n_evaluated: int
    n_dropped: int
    n_seen_targets: int
    seconds: float


def evaluate_ranking(
    scorer: Scorer,
    task: RankingTask,
    *,
    ks: Sequence[int] = (10, 20),
    exact_mrr: bool = True,
    memory_bytes: int,
    group: dist.ProcessGroup | None = None,
) -> RankingResult:
    """Rank the whole catalogue for the task's users.

    Args:
        scorer: gives the scores, block by block.
        task: this worker's users.
        ks: cut-offs of the metrics.
        exact_mrr: rank the first target exactly (a second pass over the items where the first does not tell); else the
            key is `mrr@K`, with nothing below the longest cut-off.
        memory_bytes: for the lists, the scores and the scorer's temporaries of the scores' size (not its payloads).
        group: CPU-capable process group over which the users are shared out; None: this process has them all.

    Raises:
        UserError: too little memory, scores that are not finite, no user with a target. On every worker alike.
        ValueError: the scorer's blocks do not hold every item once, or scores of a wrong shape or dtype.
    """
    started = time.perf_counter()
    if not ks or min(ks) < 1:
        raise ValueError(f"ks = {tuple(ks)}: cut-offs must be at least 1")
    state_bytes = len(task.users) * (16 * max(ks) + 50) + 13 * task.n_items
    _refuse_too_large(state_bytes + 16 * task.n_items, memory_bytes, len(task.users), task.n_items, group)
    ranking = _Ranking(task, max(ks), memory_bytes - state_bytes)
    ranking.rank(scorer, exact_mrr)
    _refuse_non_finite(ranking.n_not_finite, group)
    if exact_mrr and _total(np.array([ranking.unresolved().sum()]), group)[0] > 0:
        ranking.count_items_ahead(scorer)
    first_rank = ranking.first_rank() if exact_mrr else None
    return _aggregate(task, ranking.top_item, first_rank, ks, group, started)


class _Ranking:
    """Running state of one worker's users."""

    def __init__(self, task: RankingTask, k: int, score_bytes: int) -> None:
        n = len(task.users)
        self.task = task
        self.score_bytes = score_bytes
        self.top_score = np.full((n, k), -np.inf)
        self.top_item = np.full((n, k), -1, np.int64)
        self.best_score = np.full(n, -np.inf)
        self.best_item = np.full(n, -1, np.int64)  # first target in ranking order, -1: none can be ranked
        self.position = np.zeros(n, np.int64)  # of best_item in the list, from 1; 0: not in it
        self.ahead = np.zeros(n, np.int64)  # items ranked before best_item
        self.counted = np.zeros(n, np.bool_)  # whose `ahead` is known
        self.column_of = np.full(task.n_items, -1, np.int32)
        self.n_not_finite = 0

    def rank(self, scorer: Scorer, exact_mrr: bool) -> None:
        """First pass: top-k lists, and each user's first target."""
        task = self.task
        for items, payload in self._blocks(scorer):
            if isinstance(payload, InnerProducts):
                self._rank_products(items, payload, exact_mrr)
                continue
            for start, scores in self._scores(scorer, items, payload, None):
                update_top_k(scores, items, task.users, start, self.top_score, self.top_item)
                if not exact_mrr:
                    continue
                update_best_target(
                    scores,
                    self.column_of,
                    task.users,
                    start,
                    task.target_indptr,
                    task.target_items,
                    self.best_score,
                    self.best_item,
                )
                if len(items) == task.n_items:  # one block is the whole catalogue: no second pass
                    self._count(scores, items, start, self.best_item >= 0)
                    self.counted[:] = True
        for first in range(0, len(self.top_item), _METRIC_ROWS):
            rows = slice(first, first + _METRIC_ROWS)
            at = (self.top_item[rows] == self.best_item[rows, None]) & (self.best_item[rows, None] >= 0)
            self.position[rows] = metrics.first_hit(at)

    def unresolved(self) -> np.ndarray:
        """Bool `[n]`: users whose first target lies below the list, at an unknown rank."""
        return (self.best_item >= 0) & (self.position == 0) & ~self.counted

    def count_items_ahead(self, scorer: Scorer) -> None:
        """Second pass, in the same chunks (a matrix product of another shape may round differently)."""
        wanted = self.unresolved()
        for items, payload in self._blocks(scorer):
            if isinstance(payload, InnerProducts):
                products = self._products(items, payload)
                products.count_ahead(self.best_score, self.best_item, wanted, self.ahead)
                continue
            for start, scores in self._scores(scorer, items, payload, wanted):
                self._count(scores, items, start, wanted)

    def first_rank(self) -> np.ndarray:
        """Rank from 1 of each user's first target, int64 `[n]`; 0 where none can be ranked."""
        return np.where(self.position > 0, self.position, np.where(self.best_item >= 0, self.ahead + 1, 0))

    def _products(self, items: np.ndarray, payload: InnerProducts) -> ProductRanking:
        task = self.task
        if payload.users.shape != (len(task.users), payload.items.shape[1]):
            raise ValueError(
                f"vectors {payload.users.shape} of {len(task.users)} users, {payload.items.shape} of items"
            )
        seen = Rows(task.seen_indptr, task.seen_items, self.column_of)
        return ProductRanking(
            payload, items, task.users, seen, self.top_item.shape[1], self.score_bytes, torch.get_num_threads()
        )

    def _rank_products(self, items: np.ndarray, payload: InnerProducts, exact_mrr: bool) -> None:
        task, products = self.task, self._products(items, payload)
        if not exact_mrr:
            self.n_not_finite += products.rank(self.top_score, self.top_item)
            return
        targets = FirstTargets(
            Rows(task.target_indptr, task.target_items, self.column_of), self.best_score, self.best_item
        )
        whole = len(items) == task.n_items
        ranks = (self.ahead, self.counted) if whole else None
        self.n_not_finite += products.rank(self.top_score, self.top_item, targets, ranks)

    def _count(self, scores: np.ndarray, items: np.ndarray, start: int, wanted: np.ndarray) -> None:
        count_ahead(scores, items, self.task.users, start, self.best_score, self.best_item, wanted, self.ahead)

    def _blocks(self, scorer: Scorer) -> Iterator[tuple[np.ndarray, Any]]:
        covered = np.zeros(self.task.n_items, np.bool_)
        n_covered = 0
        for stable, payload in scorer.item_blocks():
            items = np.ascontiguousarray(stable, dtype=np.int64)
            if len(items) == 0:
                continue
            self.column_of[items] = np.arange(len(items), dtype=np.int32)
            yield items, payload
            self.column_of[items] = -1
            covered[items] = True
            n_covered += len(items)
        if n_covered != self.task.n_items or not covered.all():
            raise ValueError(
                f"the item blocks hold {n_covered} items, {covered.sum()} of them distinct; the catalogue has "
                f"{self.task.n_items}"
            )

    def _scores(
        self, scorer: Scorer, items: np.ndarray, payload: Any, wanted: np.ndarray | None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(first user, masked scores) of each chunk of users that holds a wanted one."""
        task = self.task
        fits = self.score_bytes // (16 * len(items))
        rows = int(min(fits, max(_MIN_ROWS, _CHUNK_BYTES // (8 * len(items)))))
        for start in range(0, len(task.users), rows):
            stop = min(start + rows, len(task.users))
            if wanted is not None and not wanted[start:stop].any():
                continue
            beat.tick()
            scores = np.require(scorer.score(start, stop, payload), requirements=["C", "W"])
            if scores.shape != (stop - start, len(items)) or scores.dtype not in (np.float32, np.float64):
                raise ValueError(
                    f"scores of {stop - start} users and {len(items)} items are {scores.dtype} {scores.shape}"
                )
            self.n_not_finite += mask_seen(scores, self.column_of, task.seen_indptr, task.seen_items, start)
            yield start, scores


def _aggregate(
    task: RankingTask,
    all_top_items: np.ndarray,
    first_rank: np.ndarray | None,
    ks: Sequence[int],
    group: dist.ProcessGroup | None,
    started: float,
) -> RankingResult:
    tail = metrics.tail_items(task.item_degree)
    cold = task.item_degree == 0
    sums: metrics.Sums = {}
    exposure = np.zeros(task.n_items, np.int64)
    for start in range(0, max(len(task.users), 1), _METRIC_ROWS):
        rows = slice(start, min(start + _METRIC_ROWS, len(task.users)))
        indptr = task.target_indptr[rows.start : rows.stop + 1]
        top_items = all_top_items[rows]
        part = metrics.metric_sums(
            top_items,
            None if first_rank is None else first_rank[rows],
            indptr - indptr[0],
            task.target_items[indptr[0] : indptr[-1]],
            task.user_degree[rows],
            tail,
            cold,
            ks,
        )
        sums = metrics.add_sums(sums, part) if sums else part
        exposure += np.bincount(top_items[top_items >= 0], minlength=task.n_items)
    counts = [len(task.users), task.n_users_without_targets, task.n_seen_targets]
    n_evaluated, n_dropped, n_seen = (int(n) for n in _total(np.array(counts, np.int64), group))
    if n_evaluated == 0:
        raise UserError("evaluation: no user has an item to be found in this split; give a split with held-out edges")
    totals = _total(np.array(list(sums.values()), np.float64), group)
    values = metrics.means({name: (float(t), int(n)) for name, (t, n) in zip(sums, totals, strict=True)})
    exposure = _total(exposure, group)
    values[f"coverage@{max(ks)}"] = metrics.coverage(exposure)
    values[f"gini@{max(ks)}"] = metrics.gini(exposure)
    return RankingResult(values, all_top_items, n_evaluated, n_dropped, n_seen, time.perf_counter() - started)


def _total(values: np.ndarray, group: dist.ProcessGroup | None) -> np.ndarray:
    """Sum over the workers."""
    if group is None:
        return values
    tensor = torch.from_numpy(values.copy())
    with beat.waiting():
        dist.all_reduce(tensor, group=group)
    return tensor.numpy()


def _refuse_too_large(
    needed: int, memory_bytes: int, n_users: int, n_items: int, group: dist.ProcessGroup | None
) -> None:
    # Every worker must learn of it: one that raised alone would leave the others waiting in a collective.
    if _total(np.array([int(needed > memory_bytes)]), group)[0] > 0:
        raise UserError(
            f"evaluation: evaluate.memory_gib = {memory_bytes / 2**30:.4g} is too little for {n_users} users and "
            f"{n_items} items of a worker, which need {needed / 2**30:.4g}; raise it or use more workers"
        )


def _refuse_non_finite(n_not_finite: int, group: dist.ProcessGroup | None) -> None:
    total = int(_total(np.array([n_not_finite]), group)[0])
    if total > 0:
        raise UserError(
            f"evaluation: {total} scores are not finite numbers: the model has diverged; lower optim.lr or look for "
            "overflow in its features"
        )


def build_ranking_task(
    topology: Topology,
    user: np.ndarray,
    item: np.ndarray,
    *,
    node_range: tuple[int, int] | None = None,
) -> RankingTask:
    """Task of the users in a range of node ids: targets given as edges, seen items from the topology's rows.

    Args:
        topology: the training graph in use (`fit` for validation, `full` for test).
        user: stable users of the held-out edges of all workers, integer `[n_edges]`.
        item: their stable items.
        node_range: (start, stop) node ids that this worker owns; None: all.
    """
    low, high = node_range if node_range is not None else (0, topology.n_nodes)
    user_nodes = np.asarray(topology.node_id[: topology.n_users], np.int64)
    item_nodes = np.asarray(topology.node_id[topology.n_users :], np.int64)
    n_owned = int(((user_nodes >= low) & (user_nodes < high)).sum())
    edge_node = user_nodes[np.asarray(user, np.int64)]
    mine = (edge_node >= low) & (edge_node < high)
    # Ascending (node, item) pairs, each once.
    pairs = np.unique(edge_node[mine] * topology.n_items + np.asarray(item, np.int64)[mine])
    nodes = np.unique(pairs // topology.n_items)
    seen_indptr, seen_items = topology.neighbors(nodes)
    seen_pairs = np.repeat(nodes, np.diff(seen_indptr)) * topology.n_items + seen_items
    unseen = ~_contains(seen_pairs, pairs)
    n_seen_targets = int(len(pairs) - unseen.sum())
    pairs = pairs[unseen]
    kept = _contains(pairs // topology.n_items, nodes)
    if not kept.all():
        nodes = nodes[kept]
        seen_indptr, seen_items = topology.neighbors(nodes)
    per_user = np.unique(pairs // topology.n_items, return_counts=True)[1]
    return RankingTask(
        users=np.asarray(topology.stable_id[nodes], np.int64),
        seen_indptr=seen_indptr,
        seen_items=seen_items,
        target_indptr=np.concatenate([[0], np.cumsum(per_user, dtype=np.int64)]),
        target_items=pairs % topology.n_items,
        n_items=topology.n_items,
        item_degree=topology.degree(item_nodes),
        user_degree=np.diff(seen_indptr),
        n_users_without_targets=n_owned - len(nodes),
        n_seen_targets=n_seen_targets,
    )


def _contains(ascending: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Bool of wanted's shape: which are in the ascending array."""
    if len(ascending) == 0:
        return np.zeros(len(wanted), np.bool_)
    at = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return ascending[at] == wanted
