from __future__ import annotations

import json
from pathlib import Path

import pytest

from distgnn.report.summary import summary_rows, write_summary


def row(model: str, ndcg: float, **more: float) -> dict[str, object]:
    return {"model": model, "recall@20": ndcg + 0.1, "ndcg@20": ndcg, "bytes": 8, "latency_ms": 0.5, "mrr": 0.2, **more}


TEACHER = {"baselines": [row("GF-CF", 0.4), row("TopPop", 0.1), row("ALS", 0.3), row("ItemKNN", 0.2)]}
STUDENT = {"models": [row(m, 0.5) for m in ("student-int8", "teacher", "pca-int8", "student", "teacher-int8")]}


def test_rows_in_the_order_and_under_the_names_that_readers_rely_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name, report in (("teacher", TEACHER), ("student", STUDENT)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    write_summary(str(tmp_path), str(tmp_path / "teacher"), str(tmp_path / "student"))
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert [r["model"] for r in rows] == ["toppop", "itemknn", "als", "gfcf", "teacher", "student", "student-int8"]
    assert all(list(r) == ["model", "recall@20", "ndcg@20", "bytes", "latency_ms"] for r in rows)
    assert [r["ndcg@20"] for r in rows] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5]
    assert "student-int8" in capsys.readouterr().out


def test_without_some_baselines_the_rest_is_there() -> None:
    rows = summary_rows({"baselines": [row("ALS", 0.3)]}, STUDENT)
    assert [r["model"] for r in rows] == ["als", "teacher", "student", "student-int8"]
