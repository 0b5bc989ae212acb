"""Does training on GPUs give what one CPU worker gives, and how fast is it there?

    python -m benchmarks.gpu_check --json OUT.json

One CPU worker is the reference. One GPU and all GPUs, each with the embedding tables on the GPUs and on the host, must
sample the same blocks to the byte, and come to its losses and metrics up to rounding. Then every cell is timed without
the dump of blocks. Exit code 1: a cell failed; 2: no CUDA device. `--device cpu` compares two CPU workers instead.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import exit_with, parser, records_of, train, write_json
from distgnn.report import format_table

MODELS = {
    "lightgcn": ["loss.name=sampled_softmax"],
    "graphsage": [
        "model.encoder=graphsage",
        "model.tower=mlp",
        "model.dropout=0.2",
        "loss.name=bpr",
        "loss.num_negatives=2",
    ],
}
COMMON = [
    "data.name=debian-deps",
    "partition.method=random",
    "run.tensorboard=false",
    "optim.lr=0.01",
    "train.epochs=1000000",
    "train.eval_every=0",
]
METRIC_TOLERANCE = 1e-3
COLUMNS = ["model", "cell", "loss diff", "metric diff", "positives/s", "M edges/s", "GPU GiB", "host GiB"]


@dataclass(frozen=True)
class Cell:
    """One way to run a model. `tables`: device or host."""

    device: str
    workers: int
    tables: str

    @property
    def name(self) -> str:
        """In the table and in paths."""
        return f"{self.device}-{self.workers}-{self.tables}"

    def overrides(self) -> list[str]:
        """Options of the cell."""
        gpu = "true" if self.device == "cuda" else "false"
        return [f"cluster.workers={self.workers}", f"cluster.use_gpu={gpu}", f"cluster.tables={self.tables}"]


@dataclass(frozen=True)
class Outcome:
    """What a run left: losses by step, bytes of every dumped step by name, and its report."""

    losses: dict[int, float]
    blocks: dict[str, bytes]
    report: dict[str, Any]


REFERENCE = Cell("cpu", 1, "host")


def cells_of(device: str, gpus: int) -> list[Cell]:
    """What is compared with the reference."""
    if device == "cpu":
        return [Cell("cpu", 2, "host")]
    return [Cell("cuda", n, tables) for n in sorted({1, gpus}) for tables in ("device", "host")]


def outcome_of(run: Path) -> Outcome:
    """Read a run with `train.log_every = 1` and `run.dump_blocks`."""
    return Outcome(
        {record["step"]: record["loss"] for record in records_of(run)},
        {str(file.relative_to(run)): file.read_bytes() for file in (run / "blocks").rglob("*.npz")},
        json.loads((run / "report.json").read_text(encoding="utf-8")),
    )


def compare(got: Outcome, expected: Outcome, cell: Cell, tolerance: float) -> tuple[dict[str, float], list[str]]:
    """(largest differences, what is wrong in words)."""
    wrong = []
    if got.blocks != expected.blocks:
        names = sorted(n for n in {*got.blocks, *expected.blocks} if got.blocks.get(n) != expected.blocks.get(n))
        wrong.append(f"blocks differ in {len(names)} steps, first {names[0]}")
    if got.losses.keys() != expected.losses.keys() or not got.losses:
        wrong.append(f"{len(got.losses)} steps instead of {len(expected.losses)}")
    relative = {step: _relative(got.losses[step], loss) for step, loss in expected.losses.items() if step in got.losses}
    worst = max(relative, key=lambda step: relative[step], default=0)
    loss_difference = relative.get(worst, math.inf)
    if not loss_difference <= tolerance:
        wrong.append(f"losses differ by {loss_difference:.1e} (step {worst})")
    metrics, known = got.report["metrics"], expected.report["metrics"]
    metric_difference = max((abs(metrics.get(name, math.inf) - known[name]) for name in known), default=0.0)
    if not metric_difference <= METRIC_TOLERANCE:
        wrong.append(f"metrics differ by {metric_difference:.4f}")
    if got.report["tables"] != cell.tables:
        wrong.append(f"tables were in {got.report['tables']} memory")
    return {"loss diff": loss_difference, "metric diff": metric_difference}, wrong


def _relative(got: float, expected: float) -> float:
    difference = abs(got - expected) / abs(expected)
    return difference if math.isfinite(difference) else math.inf


def throughput(run: Path) -> dict[str, float]:
    """Medians over the records after the first, which holds the warm-up."""
    records = records_of(run)[1:]
    return {
        "positives/s": statistics.median(r["positives_per_second"] for r in records),
        "M edges/s": statistics.median(r["sampled_edges_per_second"] for r in records) / 1e6,
    }


def measure(model: str, cell: Cell, folder: Path, options: argparse.Namespace) -> tuple[Outcome, dict[str, Any]]:
    """Train one cell, with blocks dumped and then, unless `--speed-steps 0`, for time."""
    common = [*COMMON, f"partition.parts={options.parts}", *MODELS[model], *options.overrides, *cell.overrides()]
    run = folder / f"{model}-{cell.name}"
    train(run, [*common, f"train.max_steps={options.steps}", "train.log_every=1", "run.dump_blocks=true"])
    outcome = outcome_of(run)
    row: dict[str, Any] = {
        "model": model,
        "cell": cell.name,
        "GPU GiB": max(outcome.report["peak_gpu_bytes"]) / 2**30,
        "host GiB": max(outcome.report["peak_rss_bytes"]) / 2**30,
    }
    if options.speed_steps:
        window = max(1, options.speed_steps // 5)
        timed = folder / f"{model}-{cell.name}-timed"
        train(timed, [*common, f"train.max_steps={options.speed_steps}", f"train.log_every={window}"])
        row.update(throughput(timed))
    return outcome, row


def check(model: str, cells: list[Cell], folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the reference and the cells of one model; a row each, with `wrong` in words."""
    expected, row = measure(model, REFERENCE, folder, options)
    rows = [{**row, "wrong": []}]
    for cell in cells:
        try:
            got, row = measure(model, cell, folder, options)
            differences, wrong = compare(got, expected, cell, options.tolerance)
            row = {**row, **differences, "wrong": wrong}
        except RuntimeError as error:
            row = {"model": model, "cell": cell.name, "wrong": [f"did not run: {error}"]}
        rows.append(row)
        if row["wrong"]:
            print(f"FAIL {model} {cell.name}: {'; '.join(row['wrong'])}", flush=True)
        else:
            print(
                f"PASS {model} {cell.name}: blocks equal to the byte in {len(expected.blocks)} steps, losses within "
                f"{row['loss diff']:.1e}, metrics within {row['metric diff']:.1e}",
                flush=True,
            )
    return rows


def gpus() -> list[str]:
    """Names of the CUDA devices."""
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def main(arguments: list[str] | None = None) -> int:
    """Check all models, print the table, write the figures; the exit code."""
    options_parser = parser(__doc__.split("\n")[0])
    options_parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the check itself"
    )
    options_parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    options_parser.add_argument("--steps", type=int, default=60, help="compared")
    options_parser.add_argument("--speed-steps", type=int, default=300, help="timed; 0: none")
    options_parser.add_argument("--tolerance", type=float, default=1e-4, help="of a loss, relative")
    options_parser.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value")
    options = options_parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu_check: torch sees no CUDA device; nothing was checked (--device cpu tries the check itself)")
        return 2
    devices = gpus() if options.device == "cuda" else []
    cells = cells_of(options.device, len(devices))
    options.parts = max(cell.workers for cell in cells)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="distgnn-gpu-check-") as folder:
        for model in options.models.split(","):
            rows += check(model, cells, Path(folder), options)
    small = ("loss diff", "metric diff")
    print(format_table([{k: f"{v:.1e}" if k in small else v for k, v in row.items()} for row in rows], COLUMNS))
    failed = sum(bool(row["wrong"]) for row in rows)
    print(f"{'FAIL' if failed else 'PASS'}: {len(rows) - failed} of {len(rows)} cells, the CPU references among them")
    write_json(
        options.json,
        {
            "gpus": devices,
            "cuda": torch.version.cuda,
            "options": {k: v for k, v in vars(options).items() if k != "json"},
            "rows": rows,
        },
    )
    return 1 if failed else 0


if __name__ == "__main__":
    exit_with(main)
