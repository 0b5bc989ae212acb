"""How good is the teacher beside TopPop, ItemKNN, GF-CF and ALS, on the same edges and by the same evaluation?

    python -m benchmarks.quality --recipe jobs/recipes/debian-deps.toml --seeds 0,1,2 --json OUT.json

Every model is tuned on the validation split; the test split is read once a seed.
"""

from __future__ import annotations

import statistics
import tempfile
from typing import Any

from benchmarks.harness import exit_with, parser, write_json
from distgnn import commands
from distgnn.config_reading import load_config
from distgnn.report import format_table

METRICS = ("recall@20", "ndcg@20")


def main() -> None:
    """Train once a seed, print and write a row for each model."""
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--recipe", default="jobs/recipes/debian-deps.toml", help="configuration of the teacher")
    options.add_argument("--seeds", default="0", help="comma-separated; the baselines run once")
    options.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value")
    arguments = options.parse_args()
    reports = []
    for i, seed in enumerate(int(s) for s in arguments.seeds.split(",")):
        with tempfile.TemporaryDirectory(prefix="distgnn-quality-") as folder:
            baselines = ["evaluate.baselines=toppop,itemknn,gfcf,als"] if i == 0 else []
            run = [f"run.out={folder}/run", f"run.seed={seed}"]
            reports.append(commands.train(load_config(arguments.recipe, [*arguments.overrides, *run, *baselines])))
    rows: list[dict[str, Any]] = [
        {"model": r["model"], **{m: r[m] for m in METRICS}, "seconds": r["fit_seconds"]}
        for r in reports[0]["baselines"]
    ]
    teacher: dict[str, Any] = {"model": "teacher", "seeds": arguments.seeds}
    for metric in METRICS:
        values = [r["metrics"][metric] for r in reports]
        teacher[metric] = statistics.mean(values)
        teacher[f"{metric} sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
    teacher["seconds"] = statistics.median(r["seconds"]["training"] for r in reports)
    rows.append(teacher)
    print(format_table(rows, ["model", *METRICS, *(f"{m} sd" for m in METRICS), "seconds"]))
    write_json(arguments.json, {"dataset": reports[0]["dataset"], "config": reports[0]["config"], "rows": rows})


if __name__ == "__main__":
    exit_with(main)
