"""Fit baselines on a dataset's edges and judge them by the same evaluation as the models."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from distgnn.baselines import als, gfcf, itemknn, toppop
from distgnn.baselines.base import BaselineModel, BaselineScorer, model_bytes
from distgnn.config import Config
from distgnn.graph import Topology
from distgnn.resources import available_memory, gib
from distgnn.training.evaluation import RankingResult, RankingTask, build_ranking_task, evaluate_ranking
from distgnn.training.latency import scorer_latency
from distgnn.types import UserError

Edges = tuple[np.ndarray, np.ndarray]

_MODULES = {"toppop": toppop, "itemknn": itemknn, "gfcf": gfcf, "als": als}
LABELS = {"toppop": "TopPop", "itemknn": "ItemKNN", "gfcf": "GF-CF", "als": "ALS"}
ALPHAS = (1.0, 10.0, 40.0, 160.0)
DEFAULT_ALPHA = 40.0  # of Hu, Koren and Volinsky; taken where there is no validation edge


class EdgeDataset(Protocol):
    """What is needed of `distgnn.partition.dataset.PreparedDataset`."""

    name: str
    n_users: int
    n_items: int

    def edges(self, split: str) -> Edges:
        """Stable users and items, int64, of "train" (without validation), "valid" or "test"."""


def run_baselines(
    dataset: EdgeDataset, names: Sequence[str], split: str, config: Config, log: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Fit and evaluate baselines.

    Args:
        dataset: a prepared dataset.
        names: of toppop, itemknn, gfcf, als.
        split: "valid": fit on the fit edges and mask them; "test": fit on train and validation edges and mask both.
        config: its sections baselines, evaluate (memory) and cluster (threads).
        log: takes progress lines.

    Returns:
        A row per name: "model", the metrics, "fit_seconds", "evaluate_seconds", "bytes" that must be held to answer
        requests (histories aside), "latency_ms" of one top-20 request on one thread; "alpha" of ALS.

    Raises:
        UserError: unknown name or split, or not enough memory.
    """
    for name in names:
        if name not in _MODULES:
            raise UserError(f"evaluate.baselines: unknown baseline {name!r}; known are {', '.join(_MODULES)}")
    if split not in ("valid", "test"):
        raise UserError(f"evaluate.split = {split!r} is not one of valid, test")
    judge = _Judge(dataset, split, config)
    rows = []
    for name in names:
        log(f"baseline {LABELS[name]}: fit on {judge.n_edges:,} edges, about {gib(judge.fit_bytes(name, config))}")
        chosen = _tuned(dataset, name, config, log)
        row, result = judge.run(name, chosen)
        if name == "als":
            row["alpha"] = chosen.baselines.alpha
        log(
            f"baseline {LABELS[name]}: recall@20 {row['recall@20']:.4f} ndcg@20 {row['ndcg@20']:.4f} "
            f"(fit {row['fit_seconds']:.1f} s, evaluation of {result.n_evaluated:,} users {result.seconds:.1f} s)"
        )
        rows.append(row)
    return rows


class _Judge:
    """One split's training edges and ranking task."""

    def __init__(self, dataset: EdgeDataset, split: str, config: Config) -> None:
        user, item = dataset.edges("train")
        if split == "test":
            valid_user, valid_item = dataset.edges("valid")
            user, item = np.concatenate([user, valid_user]), np.concatenate([item, valid_item])
        self.user, self.item, self.n_edges = user, item, len(user)
        self.n_users, self.n_items = dataset.n_users, dataset.n_items
        self.memory_bytes = int(config.evaluate.memory_gib * 2**30)
        topology = Topology.from_edges(user, item, dataset.n_users, dataset.n_items)
        self.task: RankingTask = build_ranking_task(topology, *dataset.edges(split))

    def fit_bytes(self, name: str, config: Config) -> int:
        return _MODULES[name].fit_bytes(self.n_users, self.n_items, self.n_edges, config)

    def run(self, name: str, config: Config) -> tuple[dict[str, Any], RankingResult]:
        """Fit, evaluate; (row, result)."""
        needed, free = self.fit_bytes(name, config), available_memory()
        if needed > free:
            raise UserError(
                f"evaluate.baselines: {name} needs about {gib(needed)} to fit, {gib(free)} are free; leave it out"
            )
        started = time.perf_counter()
        model: BaselineModel = _MODULES[name].fit(self.user, self.item, self.n_users, self.n_items, config)
        fit_seconds = time.perf_counter() - started
        # Half for the items' payloads, half for the lists and scores.
        scorer = BaselineScorer(model, self.task.users, self.memory_bytes // 2)
        result = evaluate_ranking(scorer, self.task, memory_bytes=self.memory_bytes // 2)
        row = {
            "model": LABELS[name],
            **result.metrics,
            "fit_seconds": fit_seconds,
            "evaluate_seconds": result.seconds,
            "bytes": model_bytes(model, self.memory_bytes // 2),
            "latency_ms": scorer_latency(scorer, self.task),
        }
        return row, result


def _tuned(dataset: EdgeDataset, name: str, config: Config, log: Callable[[str], None]) -> Config:
    """ALS's confidence by validation NDCG@20, where it is left open; the test edges have no say."""
    if name != "als" or config.baselines.alpha > 0:
        return config
    candidates = {alpha: _with_alpha(config, alpha) for alpha in ALPHAS}
    if len(dataset.edges("valid")[0]) == 0:
        return candidates[DEFAULT_ALPHA]
    judge = _Judge(dataset, "valid", config)
    scores = {alpha: judge.run(name, candidate)[0]["ndcg@20"] for alpha, candidate in candidates.items()}
    best = max(scores, key=lambda alpha: scores[alpha])
    tried = ", ".join(f"{alpha:g} {score:.4f}" for alpha, score in scores.items())
    log(f"baseline ALS: alpha = {best:g} by validation ndcg@20 ({tried})")
    return candidates[best]


def _with_alpha(config: Config, alpha: float) -> Config:
    return dataclasses.replace(config, baselines=dataclasses.replace(config.baselines, alpha=alpha))
