"""The commands one after the other, as a newcomer runs them, on a small log."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distgnn import cli, commands
from distgnn.config_reading import load_config
from distgnn.export.reader import read_export
from distgnn.partition.dataset import PreparedDataset
from distgnn.report.writer import REQUIRED_KEYS

METRICS = {"recall@20", "ndcg@20", "recall@10", "ndcg@10", "hit@10", "mrr", "coverage@20", "gini@20"}
STAGES = {"prepare", "sampling", "fetch", "forward", "backward", "optimizer", "evaluation", "total"}
OPTIONS = ["model.dim=8", "train.epochs=2", "train.batch_size=64", "run.tensorboard=false", "evaluate.memory_gib=0.1"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log, in which prepare and train were run."""
    folder = tmp_path_factory.mktemp("commands")
    rng = np.random.default_rng(3)
    user, item = np.nonzero(rng.random((80, 50)) < 0.3)
    lines = [f"u{u},i{i}" for u, i in zip(user, item, strict=True)]
    (folder / "log.csv").write_text("\n".join(["customer,product", *lines]) + "\n")
    before = os.environ.get("DISTGNN_CACHE")
    os.environ["DISTGNN_CACHE"] = str(folder / "cache")
    columns = ["--user-column", "customer", "--item-column", "product"]
    overrides = [f"--set={option}" for option in OPTIONS]
    data, run = str(folder / "data"), str(folder / "run")
    try:
        assert cli.main(["prepare", "--input", str(folder / "log.csv"), *columns, "--parts", "2", "--out", data]) == 0
        more = ["--baselines", "toppop", "--out", run]
        assert cli.main(["train", "--data", data, "--workers", "2", *overrides, *more]) == 0
    finally:
        os.environ.pop("DISTGNN_CACHE")
        if before is not None:
            os.environ["DISTGNN_CACHE"] = before
    return folder


@pytest.fixture
def report(work: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((work / "run" / "report.json").read_text())
    return content


def test_the_report_holds_what_scripts_rely_on(work: Path, report: dict[str, Any]) -> None:
    assert set(REQUIRED_KEYS) <= set(report)
    assert set(report["metrics"]) >= METRICS
    assert all(0.0 <= report["metrics"][name] <= 1.0 for name in METRICS)
    assert set(report["seconds"]) >= STAGES
    assert all(seconds >= 0.0 for seconds in report["seconds"].values())
    assert (report["workers"], report["partitions"], report["split"]) == (2, 2, "test")
    assert len(report["peak_rss_bytes"]) == 2
    assert report["remote_bytes"] == sum(report["remote_bytes_by_kind"].values())
    assert all(report["remote_bytes_by_kind"][kind] > 0 for kind in ("rows", "gradients", "gathered"))
    expected = {"topology": 0, "rows": 1, "features": 0, "gradients": 1, "gathered": 2}  # in shared memory
    assert report["exchanges_per_step"] == expected
    assert report["messages_per_step"] == {kind: 2 * n for kind, n in expected.items()}
    assert sum(report["remote_bytes_per_step"].values()) * sum(report["steps"].values()) == report["remote_bytes"]
    facts = report["dataset"]
    manifest = json.loads((work / "data" / "manifest.json").read_text())
    assert {key: facts[key] for key in ("n_users", "n_items", "n_train", "n_test")} == {
        key: manifest["counts"][key] for key in ("n_users", "n_items", "n_train", "n_test")
    }
    assert report["n_evaluated"] + report["n_dropped"] == facts["n_users"]
    (row,) = report["baselines"]
    assert row["model"] == "TopPop"
    assert set(row) >= METRICS


def test_the_run_directory_is_whole(work: Path, report: dict[str, Any]) -> None:
    run = work / "run"
    config = load_config(run / "config.toml")
    assert config.to_dict() == report["config"]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {record["phase"] for record in records} == {"fit", "full"}
    assert all(np.isfinite(record["loss"]) for record in records if "loss" in record)
    assert "<svg" in (run / "report.html").read_text()
    export, dataset = read_export(str(run)), PreparedDataset.open(str(work / "data"))
    assert (export.manifest["model"], export.manifest["phase"]) == ("lightgcn", "full")
    assert export.users.values.shape == (report["dataset"]["n_users"], 8)
    assert export.items.values.shape == (report["dataset"]["n_items"], 8)
    assert (export.user_keys, export.item_keys) == (dataset.user_keys(), dataset.item_keys())
    edges = [np.concatenate(side) for side in zip(dataset.edges("train"), dataset.edges("valid"), strict=True)]
    assert (np.diff(export.seen_indptr) == np.bincount(edges[0], minlength=dataset.n_users)).all()
    assert (export.seen_items == edges[1][np.lexsort((edges[1], edges[0]))]).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluating_a_run_gives_its_metrics_again(
    work: Path, report: dict[str, Any], workers: int, tmp_path: Path
) -> None:
    overrides = [f"run.path={work / 'run'}", f"run.out={tmp_path / 'out'}", f"cluster.workers={workers}"]
    again = commands.evaluate(load_config(None, [*overrides, "evaluate.baselines=toppop"]))
    for name in METRICS:
        assert again["metrics"][name] == pytest.approx(report["metrics"][name], abs=1e-3)
    assert again["baselines"][0]["ndcg@20"] == report["baselines"][0]["ndcg@20"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["metrics"] == again["metrics"]


def test_baselines_need_no_run(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [f"data.path={work / 'data'}", "partition.parts=2", "evaluate.baselines=toppop,itemknn"]
    out = str(tmp_path / "figures")
    result = commands.evaluate(load_config(None, [*overrides, f"run.out={out}"]))
    assert [row["model"] for row in result["baselines"]] == ["TopPop", "ItemKNN"]
    printed = capsys.readouterr().out
    assert "TopPop" in printed
    assert "ndcg@20" in printed
    assert json.loads(Path(out, "report.json").read_text())["baselines"][0]["model"] == "TopPop"
