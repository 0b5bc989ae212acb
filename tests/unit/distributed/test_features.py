"""Every node's features are its own, whoever holds them; own rows alone are read; bfloat16 rounds what others own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distgnn.config import SamplerConfig
from distgnn.distributed.features import FeatureStore
from distgnn.distributed.hot_rows import HotNodes
from distgnn.distributed.probable_nodes import probable_nodes
from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from distgnn.training.trainer import PhaseTrainer
from distgnn.types import UserError
from tests import naive_inclusion
from tests.small_training import small_config, small_features, small_graph, small_trainer
from tests.two_workers import run_two_workers

GRAPH = small_graph(9)
SIZES = {1: [0, GRAPH.n_nodes], 2: [0, 23, GRAPH.n_nodes]}
WIDTHS = [(3, 5), (0, 5), (4, 0)]
HOT = ["cluster.hot_rows=0", "cluster.hot_rows=6"]
WIRES = ["float32", "bfloat16"]
CASES = [(widths, [hot], wire) for widths in WIDTHS for hot in HOT for wire in WIRES]
CACHE = "cluster.feature_cache=9"
CASES += [(WIDTHS[0], [hot, CACHE], wire) for hot, wire in zip(HOT, WIRES, strict=True)] + [
    (WIDTHS[1], [CACHE], "float32")
]
WANTED = np.random.default_rng(1).permutation(GRAPH.n_nodes)[:50]


class Watched(np.ndarray):
    """Notes which rows are read."""

    read: list[np.ndarray]

    def __getitem__(self, rows: object) -> np.ndarray:
        self.read.append(np.asarray(rows))
        return np.asarray(self)[rows]


def watched(array: np.ndarray) -> Watched:
    result = array.view(Watched)
    result.read = []
    return result


def made(case: int, run: Path, group: WorkerGroup) -> tuple[PhaseTrainer, dict[str, Watched]]:
    widths, hot, wire = CASES[case]
    features = {role: watched(rows) for role, rows in small_features(GRAPH, *widths).items()}
    config = small_config(*hot, f"cluster.wire={wire}", "run.dtype=float32")
    return small_trainer(config, run, GRAPH, group, np.array(SIZES[group.size]), features=features), features


def worker(rank: int, folder: Path) -> None:
    group = WorkerGroup.join(rank, 2, init_method=f"file://{folder}/meet", timeout_seconds=60)
    for case in range(len(CASES)):
        np.savez(folder / f"{case}-{rank}.npz", **fetched(case, folder, group))
    group.leave()


def fetched(case: int, run: Path, group: WorkerGroup) -> dict[str, np.ndarray]:
    """By role: positions and rows of what a worker fetches, of what it owns, and which rows it has read."""
    trainer, features = made(case, run, group)
    store = trainer.features
    assert isinstance(store, FeatureStore)
    wanted = WANTED if group.rank == 0 else WANTED[::-1][:31]
    plan = trainer.embedding.plan(wanted, trainer.bounds)
    node_type, _, _ = GRAPH.describe(wanted)
    result = {"nodes": wanted, "hot": trainer.embedding.hot.nodes, "cached": store.cached.nodes}
    for name, found in (("fetched", store.fetch(plan, wanted, node_type)), ("own", store.own(3, 20))):
        for role, rows in found.items():
            result[f"{name} at {role}"], result[f"{name} {role}"] = rows.at.numpy(), rows.values.numpy()
    for role, rows in features.items():
        result[f"read {role}"] = np.concatenate(rows.read)
    return result


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    run_two_workers(worker, folder)
    return folder


def check(case: int, rank: int, bounds: list[int], got: dict[str, np.ndarray]) -> None:
    widths, _, wire = CASES[case]
    features = small_features(GRAPH, *widths)
    low, high = bounds[rank : rank + 2]
    for role, first, last in (("user", 0, GRAPH.n_users), ("item", GRAPH.n_users, GRAPH.n_nodes)):
        if role not in features:
            assert not any(key.endswith(role) for key in got)
            continue
        here = np.flatnonzero((got["nodes"] >= first) & (got["nodes"] < last))
        np.testing.assert_array_equal(got[f"fetched at {role}"], here)
        nodes = got["nodes"][here]
        exact = ((nodes >= low) & (nodes < high)) | np.isin(nodes, got["hot"]) | np.isin(nodes, got["cached"])
        rows = features[role][nodes - first]
        rounded = torch.from_numpy(rows).to(torch.bfloat16).float().numpy()
        expected = np.where(exact[:, None] | (wire == "float32"), rows, rounded)
        np.testing.assert_array_equal(got[f"fetched {role}"], expected)
        own = np.arange(low + 3, min(low + 20, high))
        mine = (own >= first) & (own < last)
        np.testing.assert_array_equal(got[f"own at {role}"], np.flatnonzero(mine))
        np.testing.assert_array_equal(got[f"own {role}"], features[role][own[mine] - first])
        held = np.unique(np.concatenate([np.arange(low, high), got["hot"], got["cached"]]))
        held = held[(held >= first) & (held < last)]
        assert sorted(got[f"read {role}"]) == (held - first).tolist()


def probable(rank: int, hot: np.ndarray) -> list[int]:
    """The nine nodes of others, not hot, that the worker's share most probably reaches, by the oracle."""
    low, high = SIZES[2][rank : rank + 2]
    rows = [GRAPH.row(v).tolist() for v in range(GRAPH.n_nodes)]
    own_users = set(range(low, min(high, GRAPH.n_users)))
    levels, _ = naive_inclusion.reach(rows, GRAPH.n_users, (3, 2), 32 / GRAPH.n_edges, own_users, "all")
    others = [v for v in range(GRAPH.n_nodes) if not low <= v < high and v not in hot]
    return sorted(sorted(others, key=lambda v: -levels[-1][v])[:9])


@pytest.mark.parametrize("case", range(len(CASES)), ids=str)
def test_two_workers(both: Path, case: int) -> None:
    for rank in range(2):
        got = dict(np.load(both / f"{case}-{rank}.npz"))
        assert len(got["hot"]) == (6 if HOT[1] in CASES[case][1] else 0)
        assert got["cached"].tolist() == (probable(rank, got["hot"]) if CACHE in CASES[case][1] else [])
        check(case, rank, SIZES[2], got)


@pytest.mark.parametrize("case", range(len(CASES)), ids=str)
def test_one_worker(tmp_path: Path, case: int) -> None:
    group = WorkerGroup.join(0, 1)
    try:
        got = fetched(case, tmp_path, group)
    finally:
        group.leave()
    check(case, 0, SIZES[1], got | {"hot": np.arange(GRAPH.n_nodes)})


def test_a_cache_without_use_is_refused(tmp_path: Path) -> None:
    group = WorkerGroup.join(0, 1)
    try:
        with pytest.raises(
            UserError, match="cluster.feature_cache holds features .*the model takes none: leave it out"
        ):
            small_trainer(small_config(CACHE), tmp_path, GRAPH, group)
    finally:
        group.leave()
    sampler = SamplerConfig()
    own_rows = Topology(
        np.array([[0, 2, 3], [3, 3, 4]]),
        np.array([0, 1, 0, 1]),
        np.arange(4),
        [(np.array([0, 1, 2, 4]), np.array([2, 2, 0, 1])), None],
        np.array([0, 1, 2]),
        np.array([1, 1, 2, 0]),
    )
    with pytest.raises(UserError, match="sampler.topology = partitioned a worker has its own alone: leave it out"):
        probable_nodes(1, own_rows, 0, 3, HotNodes.none(), sampler, 2)


def test_released_rows_are_gone(tmp_path: Path) -> None:
    group = WorkerGroup.join(0, 1)
    try:
        trainer, _ = made(0, tmp_path, group)
        assert trainer.features is not None
        assert trainer.features.widths == {"user": 3, "item": 5}
        trainer.release()
        assert trainer.features.widths == {}
        assert trainer.embedding.weight.numel() == 0
    finally:
        group.leave()


def test_the_start_does_not_depend_on_features_nor_on_the_width(tmp_path: Path) -> None:
    """The embeddings and the other parameters start as without features; W f starts with the embeddings' deviation."""
    group = WorkerGroup.join(0, 1)
    try:
        options = ("model.encoder=graphsage", "model.tower=mlp", "model.dim=200", "model.init_std=0.3")
        plain, rich = (
            small_trainer(small_config(*options), tmp_path, GRAPH, group, features=features)
            for features in (None, small_features(GRAPH, 40, 900))
        )
        assert torch.equal(plain.embedding.weight, rich.embedding.weight)
        state = dict(rich.model.named_parameters())
        assert all(torch.equal(state[name], value) for name, value in plain.model.named_parameters())
        for role, width in (("user", 40), ("item", 900)):
            weight = state[f"projection.linear.{role}.weight"]
            assert weight.shape == (200, width)
            assert weight.std().item() * width**0.5 == pytest.approx(0.3, rel=0.05)
        assert (
            small_trainer(
                small_config("model.features=false"), tmp_path, GRAPH, group, features=small_features(GRAPH)
            ).feature_widths
            == {}
        )
    finally:
        group.leave()
