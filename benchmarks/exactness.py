"""How far do runs on other numbers of workers, partitions and with another topology part from one worker's?

    python -m benchmarks.exactness --data gowalla --steps 200 --json OUT.json

Every cell trains with the same options in float32, one record a step, and dumps its batches. Printed: whether these are
equal to the byte, and the largest relative difference of the loss within the first 60 steps and within all. Exit code
1: a batch differs, or a loss by more than 1e-6 within 60 steps or 1e-5 within 200.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import exit_with, parser, records_of, train, write_json
from benchmarks.workloads import options_of
from distgnn.report import format_table

CELLS = [
    (parts, workers, topology)
    for parts in (1, 2, 8)
    for workers in (1, 2)
    for topology in ("replicated", "partitioned")
    if workers <= parts and not (workers == 1 and topology == "partitioned")  # one worker holds everything
]
MODEL = [
    "sampler.fanout=10,10",
    "model.dim=64",
    "loss.name=sampled_softmax",
    "loss.temperature=0.1",
    "optim.lr=0.005",
    "train.batch_size=2048",
]
BOUNDS = {60: 1e-6, 200: 1e-5}


def blocks_of(run: Path) -> dict[str, bytes]:
    """Content of every dumped step."""
    return {file.name: file.read_bytes() for file in (run / "blocks").rglob("*.npz")}


def readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it is printed."""
    return {name: f"{value:.1e}" if isinstance(value, float) else value for name, value in row.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the cells, print the table."""
    options = _parser().parse_args(arguments)
    rows: list[dict[str, Any]] = []
    wrong = False
    with tempfile.TemporaryDirectory(prefix="distgnn-exactness-") as folder:
        reference: tuple[list[float], dict[str, bytes]] | None = None
        for parts, workers, topology in CELLS:
            run = Path(folder) / f"{parts}-{workers}-{topology}"
            train(
                run,
                [
                    *options_of(options.data),
                    *MODEL,
                    *options.overrides,
                    f"partition.parts={parts}",
                    f"cluster.workers={workers}",
                    f"sampler.topology={topology}",
                    f"train.max_steps={options.steps}",
                    "train.epochs=1000000",
                    "train.eval_every=0",
                    "train.log_every=1",
                    "run.dump_blocks=true",
                    "run.tensorboard=false",
                ],
            )
            losses, blocks = [record["loss"] for record in records_of(run)], blocks_of(run)
            if reference is None:
                reference = losses, blocks
            relative = [abs(a - b) / abs(b) for a, b in zip(losses, reference[0], strict=True)]
            row: dict[str, Any] = {
                "P": parts,
                "W": workers,
                "topology": topology,
                "blocks": "equal" if blocks == reference[1] else "DIFFERENT",
                "max diff, 60": max(relative[:60]),
                f"max diff, {len(relative)}": max(relative),
            }
            rows.append(row)
            wrong |= blocks != reference[1]
            wrong |= any(max(relative[:steps]) > bound for steps, bound in BOUNDS.items())
            print(", ".join(f"{name} {value}" for name, value in readable(row).items()), flush=True)
    print(format_table([readable(row) for row in rows], list(rows[0])))
    write_json(options.json, {"data": options.data, "steps": options.steps, "model": MODEL, "cells": rows})
    return int(wrong)


def _parser() -> argparse.ArgumentParser:
    result = parser("Exactness over workers, partitions and topologies.")
    result.add_argument("--data", default="gowalla", help="a workload, or a name of `distgnn datasets` (gowalla)")
    result.add_argument("--steps", type=int, default=200, help="steps of a run (200)")
    result.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return result


if __name__ == "__main__":
    exit_with(main)
