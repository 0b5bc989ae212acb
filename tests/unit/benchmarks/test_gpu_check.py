"""The check that people with GPUs run, tried on the CPU."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import Cell, Outcome, cells_of, compare, throughput

CELL = Cell("cuda", 2, "host")


def outcome(**changes: Any) -> Outcome:
    content: dict[str, Any] = {
        "losses": {1: 2.0, 2: 1.5},
        "blocks": {"blocks/fit/step-0.npz": b"a", "blocks/fit/step-1.npz": b"b"},
        "report": {"metrics": {"ndcg@20": 0.1}, "tables": "host"},
    }
    return Outcome(**{**content, **changes})


def test_two_cpu_workers_pass_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["train.batch_size=256", "sampler.fanout=3,2", "model.dim=8"]
    settings = [part for text in small for part in ("--set", text)]
    arguments = ["--device", "cpu", "--models", "graphsage", "--steps", "3", "--speed-steps", "0"]
    assert gpu_check.main([*arguments, *settings, "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert "PASS graphsage cpu-2-host: blocks equal to the byte in 3 steps" in out
    figures = json.loads((tmp_path / "out.json").read_text())
    reference, row = figures["rows"]
    assert (reference["cell"], row["cell"], row["wrong"]) == ("cpu-1-host", "cpu-2-host", [])
    assert 0 <= row["loss diff"] <= 1e-5
    assert row["host GiB"] > 0.05
    assert figures["gpus"] == []
    assert figures["machine"]["cores"] >= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_without_a_gpu_it_ends_with_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    assert capsys.readouterr().out.count("\n") == 1


def test_a_cell_that_does_not_run_fails_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(model: str, cell: Cell, folder: Path, options: Any) -> tuple[Outcome, dict[str, Any]]:
        if cell.tables == "device" and cell.device == "cuda":
            raise RuntimeError("out of memory")
        return outcome(), {"model": model, "cell": cell.name}

    monkeypatch.setattr(gpu_check, "measure", measure)
    monkeypatch.setattr(gpu_check, "gpus", lambda: ["one", "another"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu_check.main(["--models", "lightgcn", "--json", str(tmp_path / "out.json")]) == 1
    out = capsys.readouterr().out
    assert out.count("FAIL lightgcn cuda-") == out.count("did not run: out of memory") == 2
    assert out.count("PASS lightgcn cuda-") == 2
    assert out.splitlines()[-1] == "FAIL: 3 of 5 cells, the CPU references among them"


def test_the_cells_of_some_gpus() -> None:
    assert [c.name for c in cells_of("cuda", 1)] == ["cuda-1-device", "cuda-1-host"]
    assert [c.name for c in cells_of("cuda", 4)] == ["cuda-1-device", "cuda-1-host", "cuda-4-device", "cuda-4-host"]


def test_what_is_equal_is_not_wrong() -> None:
    differences, wrong = compare(outcome(losses={1: 2.0, 2: 1.50001}), outcome(), CELL, 1e-4)
    assert wrong == []
    assert differences["loss diff"] == pytest.approx(1e-5 / 1.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": {1: 2.0, 2: 1.51}}, r"losses differ by 6.7e-03 \(step 2\)"),
        ({"losses": {1: 2.0, 2: float("nan")}}, "losses differ by inf"),
        ({"losses": {1: 2.0}}, "1 steps instead of 2"),
        ({"losses": {}}, "0 steps instead of 2"),
        (
            {"blocks": {"blocks/fit/step-0.npz": b"a", "blocks/fit/step-1.npz": b"c"}},
            "1 steps, first blocks/fit/step-1",
        ),
        ({"blocks": {"blocks/fit/step-0.npz": b"a"}}, "blocks differ in 1 steps"),
        ({"report": {"metrics": {"ndcg@20": 0.12}, "tables": "host"}}, "metrics differ by 0.0200"),
        ({"report": {"metrics": {}, "tables": "host"}}, "metrics differ by inf"),
        ({"report": {"metrics": {"ndcg@20": 0.1}, "tables": "device"}}, "tables were in device memory"),
    ],
)
def test_what_differs_is_wrong(changes: dict[str, Any], message: str) -> None:
    _, wrong = compare(outcome(**changes), outcome(), CELL, 1e-4)
    assert re.search(message, "; ".join(wrong))


def test_the_warm_up_is_not_counted(tmp_path: Path) -> None:
    rates = [(1, 1e6), (500, 4e6), (700, 5e6), (600, 6e6)]
    lines = [{"loss": 1.0, "positives_per_second": p, "sampled_edges_per_second": e} for p, e in rates]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(r) for r in [*lines, {"ndcg@20": 0.1}]))
    assert throughput(tmp_path) == {"positives/s": 600, "M edges/s": 5.0}
