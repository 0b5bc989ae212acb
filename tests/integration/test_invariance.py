"""The result does not depend on the number of partitions, workers or sampler threads, nor on who holds the topology."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn import storage
from distgnn.config_reading import load_config
from distgnn.partition.dataset import PreparedDataset
from distgnn.training.launch import run_training
from tests import own_files
from tests.exactness.datasets import adversarial_log, dated_log

LIGHTGCN, GRAPHSAGE = "lightgcn, in-batch softmax, adam", "graphsage, mlp, dropout, bpr, sgd"
MODELS = {
    LIGHTGCN: [],
    GRAPHSAGE: [
        "model.encoder=graphsage",
        "model.tower=mlp",
        "model.dropout=0.2",
        "loss.name=bpr",
        "loss.num_negatives=2",
        "optim.name=sgd",
        "optim.lr=0.05",
    ],
}
Cell = tuple[int, int, int, str]  # partitions, workers, sampler threads, topology
CELLS: list[Cell] = [
    (1, 1, 1, "replicated"),
    (2, 2, 1, "replicated"),
    (8, 3, 2, "partitioned"),
]
TINY_CELLS: list[Cell] = [
    (1, 1, 1, "replicated"),
    (5, 3, 2, "partitioned"),
]
TINY_MODELS = {
    "softmax, dropout, sgd": ["model.encoder=graphsage", "model.dropout=0.2", "optim.name=sgd", "optim.lr=0.05"],
    "shared bpr, adam": ["loss.name=bpr", "loss.negatives=shared", "loss.num_negatives=3"],
    "features, softmax, adam": [],
    "features of items, towers, bpr, sgd, hot rows": [
        "model.encoder=graphsage",
        "model.tower=mlp",
        "loss.name=bpr",
        "optim.name=sgd",
        "optim.lr=0.05",
        "cluster.hot_rows=4",
    ],
}


def run_cell(folder: Path, cell: Cell, overrides: list[str]) -> tuple[Path, dict[str, Any]]:
    """The run directory and report of a cell; with a partitioned topology workers see their own files alone."""
    parts, workers, threads, topology = cell
    run = folder / "-".join(map(str, cell))
    settings = [
        f"run.out={run}",
        f"partition.parts={parts}",
        f"cluster.workers={workers}",
        f"sampler.threads={threads}",
        f"sampler.topology={topology}",
        "train.log_every=1",
        "run.dump_blocks=true",
        "run.tensorboard=false",
    ]
    launch: Callable[..., Any] | None = own_files.launch if topology == "partitioned" and workers > 1 else None
    return run, run_training(load_config(None, [*settings, *overrides]), launch)


def losses(report: dict[str, Any]) -> list[float]:
    """Loss of every step."""
    return [record["loss"] for record in report["records"] if "loss" in record]


def blocks(run: Path) -> dict[str, bytes]:
    """Bytes of every dumped step."""
    return {str(f.relative_to(run)): f.read_bytes() for f in sorted((run / "blocks").rglob("*.npz"))}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("model", [LIGHTGCN, GRAPHSAGE])
def test_blocks_are_equal_and_losses_agree(tmp_path: Path, model: str) -> None:
    overrides = ["sampler.fanout=5,5", "train.max_steps=60", "train.batch_size=256", *MODELS[model]]
    first, reference = run_cell(tmp_path, CELLS[0], overrides)
    drawn = blocks(first)
    assert len(drawn) == len(losses(reference)) == 60
    for cell in CELLS[1:]:
        run, report = run_cell(tmp_path, cell, overrides)
        assert blocks(run) == drawn, cell
        assert losses(report) == pytest.approx(losses(reference), rel=1e-6), cell
        sent = report["remote_bytes_by_kind"]["topology"]
        assert (sent > 0) == (cell[1] > 1 and cell[3] == "partitioned")


def tiny(folder: Path) -> list[str]:
    """Settings of whole runs on the log of extremes."""
    return [
        *adversarial_log(folder),
        "run.dtype=float64",
        "model.dim=8",
        "sampler.fanout=2,3",
        "train.batch_size=7",
        "train.epochs=2",
    ]


def with_features(folder: Path, roles: list[str]) -> list[str]:
    """Settings that give the log's users and items features; some have none, some keys are not in the log."""
    rng = np.random.default_rng(6)
    settings = []
    for role, n, width in (("user", 26, 3), ("item", 16, 7)):
        if role in roles:
            keys = rng.permutation(n + 4)[: n - 2]
            vectors = pa.array(list(rng.normal(size=(len(keys), width))), pa.list_(pa.float64()))
            path = folder / f"{role}-features.parquet"
            pq.write_table(pa.table({role: keys, "number": rng.normal(5, 3, len(keys)), "vector": vectors}), path)
            settings.append(f"data.{role}_features={path}")
    return settings


@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=[] if m == "features, softmax, adam" else [pytest.mark.slow]) for m in TINY_MODELS]
)
def test_a_graph_of_extremes_gives_the_same_run(tmp_path: Path, model: str) -> None:
    """Whole runs in float64: both phases, and metrics, with shares and partitions that are often empty."""
    overrides = [*tiny(tmp_path), *TINY_MODELS[model]]
    if "features" in model:
        overrides += with_features(tmp_path, ["item"] if "of items" in model else ["user", "item"])
    first, reference = run_cell(tmp_path, TINY_CELLS[0], overrides)
    drawn = blocks(first)
    assert reference["dataset"]["n_train"] % 7 > 0  # the last step of an epoch is short
    assert len(drawn) == len(losses(reference)) == sum(reference["steps"].values())
    cells = TINY_CELLS[1:] + ([(3, 3, 2, "replicated")] if model.startswith("features,") else [])
    for cell in cells:
        run, report = run_cell(tmp_path, cell, overrides)
        assert blocks(run) == drawn, cell
        assert losses(report) == pytest.approx(losses(reference), rel=1e-9), cell
        assert report["metrics"] == pytest.approx(reference["metrics"], rel=1e-9), cell
        assert (report["remote_bytes_by_kind"]["features"] > 0) == (cell[1] > 1 and "features" in model)
        for name in ("users.parquet", "items.parquet"):
            np.testing.assert_allclose(exported(run, name), exported(first, name), rtol=1e-7, atol=1e-9)


def exported(run: Path, name: str) -> np.ndarray:
    """The vectors of a run's export, by stable id."""
    table = pq.read_table(run / "embeddings" / name, columns=["stable_id", "vector"]).sort_by("stable_id")
    return np.stack(table["vector"].to_numpy())


def test_features_change_the_losses_and_no_block(tmp_path: Path) -> None:
    overrides = [*tiny(tmp_path), "train.max_steps=5"]
    features = with_features(tmp_path, ["item"])
    cell: Cell = (2, 2, 1, "replicated")
    (plain, plain_report), (rich, rich_report), (off, off_report) = (
        run_cell(tmp_path / name, cell, [*overrides, *more])
        for name, more in (("plain", []), ("rich", features), ("off", [*features, "model.features=false"]))
    )
    assert blocks(plain) == blocks(rich) == blocks(off)
    assert losses(plain_report) == losses(off_report) != losses(rich_report)
    assert off_report["remote_bytes_by_kind"]["features"] == 0


def by_time(folder: Path) -> list[str]:
    """Settings of whole runs on a log that is split by time."""
    return [
        *dated_log(folder),
        "run.dtype=float64",
        "model.dim=8",
        "sampler.fanout=4,3",
        "train.batch_size=50",
        "train.epochs=1",
        "evaluate.sampled=true",
    ]


def test_a_split_by_time_gives_the_same_run(tmp_path: Path) -> None:
    """It turns time-respecting sampling on; all workers draw the same entries, and lose and count the same."""
    first, reference = run_cell(tmp_path, (1, 1, 1, "replicated"), by_time(tmp_path))
    assert reference["config"]["sampler"]["time_respecting"] is True
    assert 0 < reference["edges_without_negatives"] < 50
    for name in (drawn := blocks(first)):
        with np.load(first / name) as step:
            assert step["hop1"].shape[1] == 4
    cell = (6, 3, 2, "partitioned")
    run, report = run_cell(tmp_path, cell, by_time(tmp_path))
    assert blocks(run) == drawn
    assert losses(report) == pytest.approx(losses(reference), rel=1e-9)
    for key in ("metrics", "metrics_sampled_inference"):
        assert report[key] == pytest.approx(reference[key], rel=1e-9)
    assert report["edges_without_negatives"] == reference["edges_without_negatives"]


def test_a_split_by_time_keeps_to_the_past(tmp_path: Path) -> None:
    """What is dumped holds no edge later than its cut-off; with the option off it does."""
    kept = {}
    for respects in ("auto", "false"):
        overrides = [*by_time(tmp_path), f"sampler.time_respecting={respects}", "train.phase=fit"]
        kept[respects], _ = run_cell(tmp_path / respects, (2, 1, 1, "replicated"), overrides)
    dataset = PreparedDataset.open(storage.read_json(str(kept["auto"] / "dataset.json"))["path"])
    table = dataset.edge_table("train")
    columns = (table[name].to_pylist() for name in ("user", "item", "timestamp"))
    time = {(user, item): at for user, item, at in zip(*columns, strict=True)}

    def times(drawn: np.ndarray) -> list[int]:
        return [time[(at, source) if kind == 0 else (source, at)] for kind, at, source in drawn[:, :3].tolist()]

    cutoffs: set[int] = set()
    later = 0
    for name in blocks(kept["auto"]):
        with np.load(kept["auto"] / name) as step, np.load(kept["false"] / name) as free:
            assert (step["seeds"] == free["seeds"]).all()
            seeds = {time[user, item] for user, item in step["seeds"].tolist()}
            for hop in ("hop0", "hop1"):
                assert (np.array(times(step[hop])) <= step[hop][:, 3]).all()
                assert set(step[hop][:, 3].tolist()) <= seeds
                cutoffs |= set(step[hop][:, 3].tolist())
                later += (np.array(times(free[hop])) > max(seeds)).sum()
    assert len(cutoffs) > 20
    assert later > 0


@pytest.mark.parametrize(("expand", "settings"), [pytest.param("all", tiny, marks=pytest.mark.slow), ("new", by_time)])
def test_who_holds_the_topology_changes_no_bit(
    tmp_path: Path, expand: str, settings: Callable[[Path], list[str]]
) -> None:
    """The same batches in the same order: so also with `expand = "new"`, which is outside the promise."""
    overrides = [*settings(tmp_path), f"sampler.expand={expand}", "evaluate.sampled=true", "train.epochs=1"]
    ours, report = run_cell(tmp_path, (5, 3, 2, "partitioned"), overrides)
    theirs, twin = run_cell(tmp_path, (5, 3, 2, "replicated"), overrides)
    assert blocks(ours) == blocks(theirs)
    assert losses(report) == losses(twin)
    for key in ("metrics", "metrics_sampled_inference"):
        assert report[key] == twin[key]
    for name in ("users.parquet", "items.parquet"):
        assert pq.read_table(ours / "embeddings" / name) == pq.read_table(theirs / "embeddings" / name)
