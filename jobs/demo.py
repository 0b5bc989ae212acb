"""The main job: train a teacher beside baselines, distil it, recommend; one table, and summary.json.

    ray job submit --working-dir . -- python jobs/demo.py --config jobs/recipes/debian-deps.toml --out /data/runs/demo

Options after these are those of `distgnn train`.
"""

from __future__ import annotations

import argparse
import sys

from _entry import on_ray

BASELINES = "toppop,itemknn,als,gfcf"


def main() -> None:
    """Run the commands one after the other; the first that fails ends the job with its status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--workers", default="2")
    known, others = parser.parse_known_args()
    teacher, student = f"{known.out}/teacher", f"{known.out}/student"
    workers = ("--config", known.config, "--workers", known.workers)
    on_ray("train", *workers, "--baselines", BASELINES, "--out", teacher, *others)
    on_ray("distill", *workers, "--run", teacher, "--out", student)
    on_ray("recommend", "--run", student, "--k", "20", "--out", f"{known.out}/recommendations.csv")
    from distgnn.report.summary import write_summary

    write_summary(known.out, teacher, student)


if __name__ == "__main__":
    sys.exit(main())
