"""How fast is a request, and how much worse are the lists of somebody whom training never saw?

    python -m benchmarks.serving --run runs/first --json OUT.json

Quality is that of the test split's users: once as users, once by nothing but the items that they have in training (the
fold-in), once by popularity. The item vectors were trained with these users' edges: the fold-in's figure says how well
it stands in for a user's own vector, not what the user's absence from training would change in the items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.harness import exit_with, parser, write_json
from distgnn import metrics, storage
from distgnn.partition.dataset import PreparedDataset
from distgnn.recommender import Recommender
from distgnn.report import format_table

K = 20
WARM_UP = 50


def request_microseconds(request: Callable[[Any], Any], keys: Sequence[Any]) -> dict[str, float]:
    """Median and 99th percentile of one request a key, after a warm-up."""
    for key in keys[:WARM_UP]:
        request(key)
    seconds = []
    for key in keys:
        started = time.perf_counter()
        request(key)
        seconds.append(time.perf_counter() - started)
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e6
    return {"p50": float(p50), "p99": float(p99)}


def speed(recommender: Recommender, n_requests: int) -> list[dict[str, Any]]:
    """A row for each kind of request, and one for all users at once."""
    rng = np.random.default_rng(0)
    users = recommender.users.names(rng.integers(0, len(recommender.users), n_requests))
    items = recommender.items.names(rng.integers(0, len(recommender.items), n_requests))
    requests: dict[str, tuple[Callable[[Any], Any], Sequence[Any]]] = {
        "recommend": (lambda user: recommender.recommend(user, K), users),
        "recommend_for_history": (lambda item: recommender.recommend_for_history([item, *items[:4]], K), items),
        "similar_items": (lambda item: recommender.similar_items(item, K), items),
    }
    rows: list[dict[str, Any]] = [
        {"request": name, **request_microseconds(request, keys)} for name, (request, keys) in requests.items()
    ]
    everybody = np.arange(len(recommender.users))
    recommender.top_k(everybody[:WARM_UP], K)
    started = time.perf_counter()
    recommender.top_k(everybody, K)
    each = (time.perf_counter() - started) / len(everybody) * 1e6
    return [*rows, {"request": f"all users at once, {recommender.threads} threads", "p50": each}]


def quality(recommender: Recommender, dataset: PreparedDataset) -> list[dict[str, Any]]:
    """NDCG and recall of the test split's users, by each way to make a list."""
    user, item = dataset.edges("test")
    users, count = np.unique(user, return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(count)])
    edges = [np.concatenate(side) for side in zip(dataset.edges("train"), dataset.edges("valid"), strict=True)]
    order = np.lexsort((edges[1], edges[0]))
    seen = np.split(edges[1][order], np.searchsorted(edges[0][order], np.arange(1, dataset.n_users)))
    known = [u for u in range(len(users)) if len(seen[users[u]])]
    histories = [recommender.items.names(seen[users[u]]) for u in known]
    lists = {
        "recommend": recommender.recommend_many(recommender.users.names(users[known]), K),
        "recommend_for_history": [recommender.recommend_for_history(history, K) for history in histories],
        "popular": [recommender.popular(K, block=history) for history in histories],
    }
    targets = [item[offsets[u] : offsets[u + 1]] for u in known]
    sizes = np.array([len(t) for t in targets])
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    rows = []
    for name, found in lists.items():
        top = np.full((len(known), K), -1)
        for row, recommended in enumerate(found):
            top[row, : len(recommended)] = recommender.items.find_given([key for key, _ in recommended])[1]
        hits = metrics.hit_matrix(top, indptr, np.concatenate(targets))
        ndcg, recall = metrics.ndcg(hits, sizes, K).mean(), metrics.recall(hits, sizes, K).mean()
        rows.append({"lists": name, f"ndcg@{K}": float(ndcg), f"recall@{K}": float(recall), "users": len(known)})
    return rows


def main() -> None:
    """Load a run, print and write both tables."""
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--run", required=True, help="directory of a run whose dataset is where it was")
    options.add_argument("--requests", type=int, default=2000, help="of each kind")
    arguments = options.parse_args()
    started = time.perf_counter()
    recommender = Recommender.load(arguments.run)
    facts = {k: v for k, v in recommender.manifest.items() if k not in ("files", "content_hash")}
    facts["load_seconds"] = time.perf_counter() - started
    print(f"{facts['dataset']}, {facts['model']}: {facts['n_items']:,} items, {facts['dtype']} x {facts['dim']}")
    dataset = PreparedDataset.open(storage.read_json(storage.join(arguments.run, "dataset.json"))["path"])
    rows, lists = speed(recommender, arguments.requests), quality(recommender, dataset)
    print("microseconds a request")
    print(format_table(rows, ["request", "p50", "p99"]))
    print(format_table(lists, ["lists", f"ndcg@{K}", f"recall@{K}", "users"]))
    write_json(arguments.json, {"export": facts, "microseconds": rows, "quality": lists})


if __name__ == "__main__":
    exit_with(main)
