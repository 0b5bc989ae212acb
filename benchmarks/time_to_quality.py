"""How long does a job take until its recommendations are good enough, and where does the time go?

    python -m benchmarks.time_to_quality --recipe jobs/recipes/gowalla.toml --target 0.170 --json OUT.json

Trains on train and validation together for one epoch, then anew for two, and so on until Recall@20 on the test split
reaches the target; the time is that of the last run, from the start of its process to its end: preparation (from the
cache after the first run), training, evaluation, export. Nothing is chosen by the test split but where to stop the
clock. An untimed run of some steps compiles the kernels first.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import exit_with, parser, train, write_json
from distgnn.report import format_table

STAGES = ("sampling", "blocked", "fetch", "forward", "backward", "optimizer", "training", "evaluation", "total")


def timed(recipe: str, overrides: list[str], run: Path) -> dict[str, Any]:
    """Wall time of a run's process in seconds, its stages and its test metrics."""
    started = time.perf_counter()
    train(run, overrides, recipe)
    seconds = time.perf_counter() - started
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    return {
        "recall@20": report["metrics"]["recall@20"],
        "ndcg@20": report["metrics"]["ndcg@20"],
        "wall": seconds,
        **{stage: report["seconds"][stage] for stage in STAGES},
    }


def main() -> None:
    """Train until it is good enough, print and write the stages."""
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--recipe", default="jobs/recipes/gowalla.toml")
    options.add_argument("--target", type=float, default=0.170, help="Recall@20 on the test split")
    options.add_argument("--most", type=int, default=20, help="epochs to give up after")
    options.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value")
    arguments = options.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="distgnn-time-") as folder:
        train(Path(folder) / "compiled", [*arguments.overrides, "train.max_steps=20"], arguments.recipe)
        for epochs in range(1, arguments.most + 1):
            overrides = [*arguments.overrides, "train.phase=full", f"train.epochs={epochs}"]
            rows.append({"epochs": epochs, **timed(arguments.recipe, overrides, Path(folder) / str(epochs))})
            if rows[-1]["recall@20"] >= arguments.target:
                break
    shown = [
        {k: f"{v:.4f}" if "@" in k else f"{v:.1f}" if isinstance(v, float) else v for k, v in r.items()} for r in rows
    ]
    print(format_table(shown, list(rows[0])))
    write_json(arguments.json, {"recipe": arguments.recipe, "overrides": arguments.overrides, "rows": rows})


if __name__ == "__main__":
    exit_with(main)
