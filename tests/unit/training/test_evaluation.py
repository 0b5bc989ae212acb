"""Full-catalogue evaluation against a full sort, and the contracts of masking, ties, memory and errors."""

import math

import numpy as np
import pytest

from distgnn.graph import Topology
from distgnn.training.evaluation import RankingTask, build_ranking_task, evaluate_ranking
from distgnn.types import UserError
from tests import naive_metrics

MEMORY = 1 << 22


class DenseScorer:
    """Scores of all users, `[n_users, n_items]`, in blocks of `width` items in any order."""

    def __init__(self, scores, task, width=None, order=None):
        self.scores = scores[task.users]
        self.order = np.arange(scores.shape[1]) if order is None else order
        self.width = width or scores.shape[1]
        self.asked = 0

    def item_blocks(self):
        self.asked += 1
        for start in range(0, len(self.order), self.width):
            items = self.order[start : start + self.width]
            yield items, items

    def score(self, start, stop, payload):
        return self.scores[start:stop, payload]


def random_problem(rng, n_users=40, n_items=60, levels=6, dtype=np.float32):
    drawn = rng.random((n_users, n_items))
    train, test = drawn < 0.1 * rng.random(n_items) * 2, drawn > 0.94
    test[:3] = False
    train[3:12, 8:] = False  # users with few training edges
    train[:, :4] = False  # items without any
    scores = (rng.integers(0, levels, (n_users, n_items)) - levels // 2).astype(dtype)
    task = build_ranking_task(Topology.from_edges(*np.nonzero(train), n_users, n_items), *np.nonzero(test))
    return train, test, scores, task


def expected_metrics(train, test, scores, task, ks):
    def row_sets(matrix):
        return [set(np.flatnonzero(matrix[u]).tolist()) for u in task.users]

    degree = train.sum(axis=1)[task.users].tolist()
    users = task.users.tolist()
    return naive_metrics.evaluate(
        scores[task.users], users, row_sets(train), row_sets(test), train.sum(axis=0).tolist(), degree, ks
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_metrics_equal_a_full_sort(seed, dtype):
    rng = np.random.default_rng(seed)
    train, test, scores, task = random_problem(rng, dtype=dtype)
    expected = expected_metrics(train, test, scores, task, (3, 7))
    assert {"tail_recall@7", "cold_item_ndcg@7", "cold_user_recall@7"} <= expected.keys()
    for width in (60, 13, 1):
        scorer = DenseScorer(scores, task, width, rng.permutation(60))
        result = evaluate_ranking(scorer, task, ks=(3, 7), memory_bytes=MEMORY)
        assert result.metrics == pytest.approx(expected, abs=1e-12)
        assert scorer.asked == (1 if width == 60 else 2)  # one block of everything needs no second pass
    assert result.n_evaluated == int(test.any(axis=1).sum())
    assert result.n_dropped == 40 - result.n_evaluated


def test_lists_hold_no_seen_item_and_end_where_items_do():
    rng = np.random.default_rng(0)
    train = rng.random((20, 30)) < 0.5
    train[0] = True
    train[0, 11] = False  # one unseen item
    test = ~train & (rng.random((20, 30)) < 0.4)
    test[0, 11] = True
    task = build_ranking_task(Topology.from_edges(*np.nonzero(train), 20, 30), *np.nonzero(test))
    scorer = DenseScorer(rng.standard_normal((20, 30)), task, 7)
    top = evaluate_ranking(scorer, task, ks=(20,), memory_bytes=MEMORY).top_items
    assert top[0].tolist() == [11] + [-1] * 19
    for user, row in zip(task.users, top, strict=True):
        listed = row[row >= 0]
        assert not train[user, listed].any()
        assert len(set(listed)) == len(listed) == min(20, (~train[user]).sum())


def test_constant_scores_score_as_a_random_order():
    """Every user: S seen, T targets, so the metrics' expectations are known; four standard errors are allowed."""
    rng = np.random.default_rng(5)
    n_users, n_items, n_seen, n_targets, k = 4000, 200, 7, 3, 20
    # Popular items stand in front, so that a tie-break by item id would do far better than chance.
    popularity = 1.0 / np.arange(1, n_items + 1)
    popularity /= popularity.sum()
    drawn = np.stack([rng.choice(n_items, n_seen + n_targets, replace=False, p=popularity) for _ in range(n_users)])
    test, train = drawn[:, :n_targets], drawn[:, n_targets:]
    topology = Topology.from_edges(np.repeat(np.arange(n_users), n_seen), train.ravel(), n_users, n_items)
    task = build_ranking_task(topology, np.repeat(np.arange(n_users), n_targets), test.ravel())
    scorer = DenseScorer(np.full((n_users, n_items), 0.25, np.float32), task, 64)
    values = evaluate_ranking(scorer, task, ks=(k,), memory_bytes=MEMORY).metrics
    free, n = n_items - n_seen, n_users
    ideal = sum(1 / math.log2(p + 2) for p in range(n_targets))
    first = {r: math.comb(free - r, n_targets - 1) / math.comb(free, n_targets) for r in range(1, free + 1)}
    expected = {
        "recall@20": k / free,
        "ndcg@20": n_targets / free * sum(1 / math.log2(p + 2) for p in range(k)) / ideal,
        "hit@20": sum(p for r, p in first.items() if r <= k),
        "mrr": sum(p / r for r, p in first.items()),
    }
    variance = {
        "recall@20": k / free / n_targets,
        "ndcg@20": expected["ndcg@20"],  # values lie in [0, 1]
        "hit@20": expected["hit@20"],
        "mrr": sum(p / r**2 for r, p in first.items()),
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=4 * math.sqrt(variance[name] / n)), name
    assert values["coverage@20"] == 1.0
    assert values["gini@20"] < 0.06


@pytest.mark.parametrize("memory", [8_000, 9_000, 1 << 20])
def test_memory_does_not_change_the_result(memory):
    rng = np.random.default_rng(2)
    *_, scores, task = random_problem(rng)
    scores = scores + rng.standard_normal(scores.shape).astype(np.float32)
    whole = evaluate_ranking(DenseScorer(scores, task), task, ks=(5,), memory_bytes=MEMORY)
    part = evaluate_ranking(DenseScorer(scores, task, 20), task, ks=(5,), memory_bytes=memory)
    assert part.metrics == pytest.approx(whole.metrics, abs=1e-12)
    assert (part.top_items == whole.top_items).all()


def test_scores_asked_for_stay_within_the_memory():
    *_, scores, task = random_problem(np.random.default_rng(2))
    asked = []

    class Watched(DenseScorer):
        def score(self, start, stop, payload):
            asked.append((stop - start) * len(payload))
            return super().score(start, stop, payload)

    state = len(task.users) * (16 * 5 + 50) + 13 * 60
    evaluate_ranking(Watched(scores, task, 20), task, ks=(5,), memory_bytes=state + 1000)
    assert max(asked) * 16 <= 1000
    with pytest.raises(UserError, match="evaluate.memory_gib = .* is too little"):
        evaluate_ranking(Watched(scores, task, 20), task, ks=(5,), memory_bytes=state)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(value):
    *_, scores, task = random_problem(np.random.default_rng(3))
    scores[task.users[-1], 50] = value
    with pytest.raises(UserError, match="1 scores are not finite"):
        evaluate_ranking(DenseScorer(scores, task, 20), task, memory_bytes=MEMORY)


def test_a_scorers_mistakes_are_named():
    *_, scores, task = random_problem(np.random.default_rng(3))
    with pytest.raises(ValueError, match="hold 50 items, 50 of them distinct; the catalogue has 60"):
        evaluate_ranking(DenseScorer(scores, task, 20, np.arange(50)), task, memory_bytes=MEMORY)
    twice = np.append(np.arange(59), 0)
    with pytest.raises(ValueError, match="hold 60 items, 59 of them distinct"):
        evaluate_ranking(DenseScorer(scores, task, 20, twice), task, memory_bytes=MEMORY)
    with pytest.raises(ValueError, match="int64"):
        evaluate_ranking(DenseScorer(scores.astype(np.int64), task), task, memory_bytes=MEMORY)
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_ranking(DenseScorer(scores, task), task, ks=(), memory_bytes=MEMORY)


def test_without_exact_mrr_there_is_one_pass():
    train, test, scores, task = random_problem(np.random.default_rng(4))
    scorer = DenseScorer(scores, task, 20)
    values = evaluate_ranking(scorer, task, ks=(5,), exact_mrr=False, memory_bytes=MEMORY).metrics
    assert scorer.asked == 1
    reciprocal = []
    for user in task.users:
        order = naive_metrics.ranking(scores[user], int(user), set(np.flatnonzero(train[user]).tolist()))
        ranks = [p + 1 for p, item in enumerate(order[:5]) if test[user, item]]
        reciprocal.append(1 / ranks[0] if ranks else 0.0)
    assert values["mrr@5"] == pytest.approx(np.mean(reciprocal))
    assert "mrr" not in values


def test_read_only_scores_are_not_written_to():
    *_, scores, task = random_problem(np.random.default_rng(4))
    row = np.random.default_rng(0).random(60)

    class Broadcast(DenseScorer):
        def score(self, start, stop, payload):
            return np.broadcast_to(row[payload], (stop - start, len(payload)))

    kept = row.copy()
    evaluate_ranking(Broadcast(scores, task), task, memory_bytes=MEMORY)
    assert (row == kept).all()


def test_nobody_to_evaluate():
    topology = Topology.from_edges(np.array([0, 1]), np.array([0, 1]), 2, 2)
    task = build_ranking_task(topology, np.empty(0, np.int64), np.empty(0, np.int64))
    assert task.n_users_without_targets == 2
    with pytest.raises(UserError, match="no user has an item to be found"):
        evaluate_ranking(DenseScorer(np.zeros((2, 2)), task), task, memory_bytes=MEMORY)


# --- tasks -----------------------------------------------------------------------------------------------------------


def shuffled_topology(user, item, n_users, n_items, n_parts, rng):
    """The same graph in n_parts partitions of randomly assigned nodes, in random order within each type."""
    part = rng.integers(0, n_parts, n_users + n_items)
    is_item = np.arange(n_users + n_items) >= n_users
    order = np.lexsort((rng.random(n_users + n_items), is_item, part))
    node_id = np.empty(n_users + n_items, np.int64)
    node_id[order] = np.arange(n_users + n_items)
    stable = np.where(is_item, np.arange(n_users + n_items) - n_users, np.arange(n_users + n_items))[order]
    size = np.bincount(part, minlength=n_parts)
    end = np.cumsum(size)
    start = end - size
    offsets = np.stack([start, start + np.bincount(part[:n_users], minlength=n_parts), end], axis=1)
    neighbors = [[] for _ in range(n_users + n_items)]
    for u, i in zip(user, item, strict=True):
        neighbors[node_id[u]].append(node_id[n_users + i])
        neighbors[node_id[n_users + i]].append(node_id[u])
    parts = []
    for begin, _, stop in offsets:
        rows = [sorted(neighbors[v], key=lambda w: stable[w]) for v in range(begin, stop)]
        indptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
        parts.append((indptr, np.array([w for r in rows for w in r], np.int32)))
    user_offsets = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=n_users))])
    topology = Topology(offsets, stable, node_id, parts, user_offsets)
    topology.validate()
    return topology


def per_user(task: RankingTask):
    return {
        int(u): (
            task.seen_items[task.seen_indptr[r] : task.seen_indptr[r + 1]].tolist(),
            task.target_items[task.target_indptr[r] : task.target_indptr[r + 1]].tolist(),
            int(task.user_degree[r]),
        )
        for r, u in enumerate(task.users)
    }


@pytest.mark.parametrize("n_parts", [1, 3, 5])
def test_tasks_of_node_ranges_make_up_the_whole(n_parts):
    rng = np.random.default_rng(n_parts)
    drawn = rng.random((25, 35))
    train, test = np.nonzero(drawn < 0.15), np.nonzero(drawn > 0.9)
    again = rng.permutation(np.append(np.arange(len(test[0])), [0, 1]))  # any order, two edges given twice
    whole = build_ranking_task(Topology.from_edges(*train, 25, 35), test[0], test[1])
    topology = shuffled_topology(*train, 25, 35, n_parts, rng)
    bounds = [0, *topology.offsets[:, 2].tolist()]
    parts = [
        build_ranking_task(topology, test[0][again], test[1][again], node_range=(bounds[p], bounds[p + 1]))
        for p in range(n_parts)
    ]
    merged = {}
    for task in parts:
        merged |= per_user(task)
        assert (task.item_degree == np.bincount(train[1], minlength=35)).all()
    assert merged == per_user(whole)
    assert sum(t.n_users_without_targets for t in parts) == whole.n_users_without_targets
    for user, (seen, targets, degree) in merged.items():
        assert seen == np.flatnonzero(drawn[user] < 0.15).tolist()
        assert targets == np.flatnonzero(drawn[user] > 0.9).tolist()
        assert degree == len(seen)


def test_targets_already_seen_are_left_out_and_counted():
    topology = Topology.from_edges(np.array([0, 0, 1, 2]), np.array([0, 1, 2, 0]), 4, 4)
    task = build_ranking_task(topology, np.array([0, 0, 1, 3]), np.array([1, 3, 2, 0]))
    assert per_user(task) == {0: ([0, 1], [3], 2), 3: ([], [0], 0)}
    assert task.n_seen_targets == 2
    assert task.n_users_without_targets == 2
