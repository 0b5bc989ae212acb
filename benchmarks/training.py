"""How many positives a second does a training step take in, and where does its time go, beside PyTorch Geometric?

    python -m benchmarks.training --peer-python ENV/bin/python --json OUT.json

Link prediction with BPR and one uniform negative a positive; two-hop LightGCN and GraphSAGE, d = 64, learnable
embeddings, Adam, fanout [10, 10]. `distgnn, new` expands a frontier as PyG does, `distgnn, all` is the default rule,
with more edges. Every contender runs in a process of its own that is bound to so many cores, sampling included;
rounds take turns. PyG runs with the fastest of its options for a model and a number of threads, which shorter runs on
the first workload look for; where that is dense Adam, `PyG, SparseAdam` is there for its loss, in one round on one
thread: it updates the rows that distgnn's lazy Adam does. `x without loading` compares with PyG's step if its batches
came for nothing; distgnn's sampling runs beside the trainer, on the same cores. Where the peer's interpreter has no
sampler (pyg-lib or torch_sparse) or is not given, only our own figures are printed. Exit code 1: a contender failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import exit_with, parser, write_json
from benchmarks.workloads import csc_of
from distgnn.report import format_table

PEER = Path(__file__).parent / "peers" / "pyg_training.py"
OURS = {"distgnn, new": ["--expand", "new"], "distgnn, all": ["--expand", "all"]}
AGGREGATIONS = ("scatter", "sparse_tensor", "torch_csr")
LOOKED_FOR_SECONDS = 3.0
COMPARED = 100 * 1024  # positives after which the losses are compared: the mean over the last tenth of them


def run(command: list[str]) -> dict[str, Any]:
    """The figures of one process; `failed` holds what it said where it has none."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return {"failed": said[-1] if said else f"exit code {done.returncode}"}
    figures: dict[str, Any] = json.loads(lines[-1])
    return figures


def best_peer(
    command: list[str], threads: int, on_one: tuple[list[str], dict[str, Any]] | None
) -> tuple[list[str], dict[str, Any]]:
    """The peer's fastest options in short runs, chosen one after the other, and the figures of every run tried.

    Aggregation and trimming first, then the optimizer, then a loader process: they hardly depend on one another, and
    the first ones hardly on the number of threads.

    Args:
        on_one: what was found on one thread, if it was looked for.
    """
    tried: dict[str, Any] = {}

    def rate(options: list[str]) -> float:
        name = " ".join(options)
        if name not in tried:
            quick = ["--seconds", str(LOOKED_FOR_SECONDS), "--warm-up", "3", "--least-steps", "3"]
            tried[name] = run([*command, *quick, *options])
        return float(tried[name].get("positives_per_second", 0.0))

    if on_one is None:
        ways = itertools.product(AGGREGATIONS, (["--trim"], []))
        best = max((["--aggregation", way, "--optimizer", "dense", *trim] for way, trim in ways), key=rate)
        best = max([best, ["sparse" if word == "dense" else word for word in best]], key=rate)
    else:
        best = on_one[0]
    if threads > 1:
        best = max([best, [*best, "--workers", "1"]], key=rate)
    rate(best)
    return best, tried


def median_of(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Median of every figure over the rounds, and the spread of the throughput."""
    result: dict[str, Any] = {}
    for key, value in rounds[0].items():
        if isinstance(value, dict):
            result[key] = {k: statistics.median(r[key][k] for r in rounds) for k in value}
        elif isinstance(value, (int, float)) and key != "loss":
            result[key] = statistics.median(r[key] for r in rounds)
        else:
            result[key] = value  # the loss is the first round's
    rates = [r["positives_per_second"] for r in rounds]
    result["lowest"], result["highest"] = min(rates), max(rates)
    return result


Chosen = dict[tuple[str, int], tuple[list[str], dict[str, Any]]]


def cell(
    workload: str, model: str, batch: int, threads: int, options: argparse.Namespace, chosen_by: Chosen
) -> dict[str, Any]:
    """All contenders of one cell, in turns; the peer's options are kept in chosen_by, by model and threads."""
    common = [str(csc_of(workload)), "--model", model, "--batch", str(batch), "--threads", str(threads)]
    common += ["--fanout", options.fanout, "--seconds", str(options.seconds)]
    ours = [sys.executable, "-m", "benchmarks.peers.distgnn_training", *common]
    commands = {name: [*ours, *words] for name, words in OURS.items()}
    facts: dict[str, Any] = {}
    if options.peer_python:
        peer = [options.peer_python, str(PEER), *common]
        if (model, threads) not in chosen_by:
            chosen_by[model, threads] = best_peer(peer, threads, chosen_by.get((model, 1)))
        chosen, facts["peer_tried"] = chosen_by[model, threads]
        said = facts["peer_tried"][" ".join(chosen)]
        if "positives_per_second" in said:
            commands["PyG"] = [*peer, *chosen]
            facts["peer_options"] = chosen
        else:
            facts["peer_missing"] = said.get("unavailable", said.get("failed"))
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for round_ in range(options.rounds):
        for name, command in commands.items():
            rounds[name].append(run(command if round_ else [*command, "--compared", str(COMPARED)]))
    if "dense" in facts.get("peer_options", []) and threads == 1:
        # Dense Adam also moves rows that a step has not touched: equal losses are to be had by the lazy rule alone.
        lazy = ["sparse" if word == "dense" else word for word in commands["PyG"]]
        rounds["PyG, SparseAdam"] = [run([*lazy, "--compared", str(COMPARED)])]
    facts["failed"] = {n: f["failed"] for n, found in rounds.items() for f in found if "failed" in f}
    medians = {n: median_of(found) for n, found in rounds.items() if n not in facts["failed"]}
    return {"workload": workload, "model": model, "batch": batch, "threads": threads, "contenders": medians, **facts}


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each contender of a cell, as it is printed."""
    peer = found["contenders"].get("PyG")
    rows = []
    for name, figures in found["contenders"].items():
        stages = figures["stages_ms"]
        row = {key: found[key] for key in ("workload", "model", "batch", "threads")} | {
            "contender": name,
            "positives/s": f"{figures['positives_per_second']:,.0f}",
            "spread": f"{figures['lowest']:,.0f}-{figures['highest']:,.0f}",
            "step ms": f"{figures['step_ms']:.1f}",
            "stages ms": ", ".join(f"{stage} {ms:.1f}" for stage, ms in stages.items()),
            "k edges": f"{figures['edges_a_step'] / 1000:.0f}",
            "MiB": f"{figures['peak_bytes'] / 2**20:,.0f}",
            "loss": "-" if figures["loss"] is None else f"{figures['loss']:.4f}",
        }
        if peer:
            row["x PyG"] = f"{figures['positives_per_second'] / peer['positives_per_second']:.1f}"
            free = peer["positives_per_second_without_loading"]
            row["x without loading"] = f"{figures['positives_per_second'] / free:.1f}"
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the cells, print the table, write the figures."""
    options = _parser().parse_args(arguments)
    found, rows = [], []
    chosen_by: Chosen = {}
    for workload in options.workloads.split(","):
        for model, batch, threads in itertools.product(
            options.models.split(","),
            [int(b) for b in options.batches.split(",")],
            [int(t) for t in options.threads.split(",")],
        ):
            figures = cell(workload, model, batch, threads, options, chosen_by)
            found.append(figures)
            new = rows_of(figures)
            rows += new
            for row in new:
                print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            write_json(options.json, {"rounds": options.rounds, "seconds": options.seconds, "cells": found})
            if "peer_missing" in figures:
                print(f"PyG does not run: {figures['peer_missing']}", flush=True)
            for name, why in figures["failed"].items():
                print(f"FAIL {name}: {why}", flush=True)
    if not options.peer_python:
        print("PyG was not run: --peer-python names an interpreter with torch_geometric and pyg-lib or torch_sparse")
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "stages ms"))
    print(format_table([{column: row.get(column, "-") for column in columns} for row in rows], columns))
    return int(any(figures["failed"] for figures in found))


def _parser() -> argparse.ArgumentParser:
    result = parser("A training step's throughput and stages, beside PyTorch Geometric.")
    result.add_argument("--peer-python", default="", metavar="PATH", help="interpreter that PyG runs with")
    result.add_argument("--workloads", default="w1", help="of w1, w2, flat and the names of `distgnn datasets` (w1)")
    result.add_argument("--models", default="lightgcn,graphsage", help="comma-separated")
    result.add_argument("--batches", default="1024,4096", help="positives of a step")
    result.add_argument("--threads", default="1,2", help="cores that a contender may use")
    result.add_argument("--fanout", default="10,10")
    result.add_argument("--rounds", type=int, default=3)
    result.add_argument("--seconds", type=float, default=10.0, help="timed, after 20 steps of warm-up")
    return result


if __name__ == "__main__":
    exit_with(main)
