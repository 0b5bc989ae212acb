"""How much faster are two workers than one, how fast could they be, and how fast are the usual ways beside them?

    python -m benchmarks.scaling --json OUT.json [--peer-python ENV/bin/python]

Strong scaling: the same global batch on one worker and on two; in-batch softmax, as the Gowalla recipe has it. Weak
scaling: a batch twice as large on two workers; BPR, since in-batch columns grow with the batch. Two-hop LightGCN. Every
worker is a process with one thread of computing and one core, which its sampling thread shares; graphs are cut in two
partitions, which at W = 1 lie with one worker. Rounds take turns, over the same steps; the figures are medians of
rounds after a warm-up.

`bound`: the least time of the same steps at W = 1 by that at W = 2 (`benchmarks.scaling_bound`), for as many positives.
`two at once`: what of its rate a single worker keeps while another one, which has nothing to do with it, runs on the
other core: memory bandwidth and caches are shared. The bound knows nothing of it, `bound x that` does. `by processor
time` goes by what the busiest worker computes, waits left out.

Baselines: DistributedDataParallel with a dense embedding replicated in every worker, torch's Adam and our sampler; the
same with sparse gradients and SparseAdam; PyTorch Geometric's LinkNeighborLoader under DistributedDataParallel. BPR,
the same global batch. Memory is that of the worker that has most, after its rounds. PSS: all of it, pages of several
processes in equal parts. Its own: of that what is no file's (the graph is, but for PyG) and what is there beyond the
imports. RSS: the most that was resident, with shared pages in every process.

Exit code 1: a contender failed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.harness import exit_with, parser, write_json
from benchmarks.scaling_bound import Work, exchange_seconds, least_seconds, unit_seconds
from benchmarks.scaling_contenders import WARM_UP, WORKERS, Group, baselines, busiest, rate_of, settings_of, spread_of
from distgnn.report import format_table

TOPOLOGIES = ("replicated", "partitioned")


def cell(workload: str, method: str, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Single workers and groups of two in turns, then what the bound takes."""
    batch = options.batch
    large = batch * (WORKERS if kind == "weak" else 1)
    single = [*settings_of(workload, method, kind, batch, options), "cluster.workers=1"]
    double = [*settings_of(workload, method, kind, large, options), f"cluster.workers={WORKERS}"]
    module = "benchmarks.scaling_worker"
    alone = [Group(f"1 worker on core {core}", module, 1, single, core) for core in range(WORKERS)]
    groups = {t: Group(t, module, WORKERS, [*double, f"sampler.topology={t}"]) for t in TOPOLOGIES}
    everybody = [*alone, *groups.values()]
    figures: dict[str, Any] = {"workload": workload, "partitions": method, "kind": kind, "batch": [batch, large]}
    try:
        for group in everybody:
            group.ask("train", start=0, steps=WARM_UP)
        rounds: list[dict[str, Any]] = []
        for number in range(options.rounds):
            span = {"start": WARM_UP + number * options.steps, "steps": options.steps}
            one = {"1": alone[0].ask("train", **span)}
            with ThreadPoolExecutor(WORKERS) as pool:
                together = list(pool.map(lambda group, s=span: group.ask("train", **s), alone))
            rounds.append({**one, **{t: groups[t].ask("train", **span) for t in TOPOLOGIES}, "together": together})
        span = {"start": WARM_UP, "steps": options.steps}
        parts = alone[0].ask("stages", **span)[0]
        counted = alone[0].ask("count", **span, workers=WORKERS, batch_size=large)[0]["work"]
        figures["bandwidths"] = groups["replicated"].ask("bandwidths")
        figures["memory"] = {g.name: g.ask("memory") for g in everybody}
    except RuntimeError as error:
        return {**figures, "failed": str(error)}
    finally:
        for group in everybody:
            group.end()
    figures["rounds"] = rounds
    return {**figures, **summary(rounds, parts, counted, figures["bandwidths"])}


def summary(
    rounds: list[dict[str, Any]],
    parts: dict[str, Any],
    counted: list[list[dict[str, int]]],
    bandwidths: list[dict[str, float]],
) -> dict[str, Any]:
    """Rates, bounds and what goes between workers, from what the workers answered.

    Args:
        rounds: by `1`, `together` and topology, every worker's round. parts: stages of a single worker, and its work.
        counted: of each step, that of each of two workers. bandwidths: of each worker.
    """
    one_work = [Work(**w) for w in parts["work"]]
    work = [[Work(**w) for w in step] for step in counted]
    costs = unit_seconds(parts["seconds"], one_work)
    alone = least_seconds(costs, [[w] for w in one_work])
    speed = {name: min(b[name] for b in bandwidths) for name in bandwidths[0]}
    positives = sum(a["positives"] for a in rounds[0]["replicated"]) / rounds[0]["1"][0]["positives"]
    rates = {name: [rate_of(r[name]) for r in rounds] for name in ("1", *TOPOLOGIES)}
    together = [sum(rate_of(answers) for answers in r["together"]) for r in rounds]
    kept = statistics.median(t / (WORKERS * one) for t, one in zip(together, rates["1"], strict=True))
    result: dict[str, Any] = {
        "unit_seconds": costs,
        "work": {"1": mean_work([[w] for w in one_work])[0], "2": mean_work(work)},
        "two_at_once": kept,
        "positives_per_second": {name: spread_of(found) for name, found in rates.items()},
    }
    for name in TOPOLOGIES:
        answers = rounds[0][name]
        moved = max(exchange_seconds(a["bytes"], speed["messages"], speed["memory"], a["in_memory"]) for a in answers)
        speedup = positives * alone / least_seconds(costs, work, moved)
        measured = statistics.median(r / one for r, one in zip(rates[name], rates["1"], strict=True))
        result[name] = {
            "speedup": measured,
            "bound": speedup,
            "of_bound": measured / speedup,
            "bound_of_busy_cores": speedup * kept,
            "of_bound_of_busy_cores": measured / (speedup * kept),
            "by_processor_time": statistics.median(
                positives * r["1"][0]["cpu_seconds"] / busiest(r[name])["cpu_seconds"] for r in rounds
            ),
            "exchange_seconds_a_step": moved / len(work),
            "bytes_a_step": {k: sum(a["bytes"][k] for a in answers) / len(work) for k in answers[0]["bytes"]},
        }
    steps = len(work)
    result["stages_ms"] = {
        name: {s: 1000 * seconds / steps for s, seconds in busiest(rounds[0][name])["stages"].items()}
        for name in ("1", *TOPOLOGIES)
    }
    return result


def mean_work(work: list[list[Work]]) -> list[dict[str, float]]:
    """Of each worker, a step."""
    return [
        {name: statistics.fmean(getattr(step[rank], name) for step in work) for name in vars(work[0][rank])}
        for rank in range(len(work[0]))
    ]


def rows_of(figures: dict[str, Any]) -> list[dict[str, str]]:
    """Table rows of a cell."""
    rows = []
    for name in ("1", *TOPOLOGIES):
        rate = figures["positives_per_second"][name]
        row = {
            "graph": figures["workload"],
            "partitions": figures["partitions"],
            "scaling": figures["kind"],
            "workers": "1" if name == "1" else f"{WORKERS}, {name}",
            "positives/s": f"{rate['median']:,.0f} ({rate['lowest']:,.0f}-{rate['highest']:,.0f})",
        }
        if name != "1":
            found = figures[name]
            row |= {
                "x 1 worker": f"{found['speedup']:.2f}",
                "bound": f"{found['bound']:.2f}",
                "of bound": f"{found['of_bound']:.0%}",
                "x by processor time": f"{found['by_processor_time']:.2f}",
                "of linear": f"{found['speedup'] / WORKERS:.0%}",
                "two at once": f"{figures['two_at_once']:.2f}",
                "bound x that": f"{found['bound_of_busy_cores']:.2f}",
                "of it": f"{found['of_bound_of_busy_cores']:.0%}",
                "remote kB a step": " ".join(f"{k} {n / 1e3:,.0f}" for k, n in found["bytes_a_step"].items() if n),
            }
        row["stages ms, busiest worker"] = " ".join(f"{s} {ms:.1f}" for s, ms in figures["stages_ms"][name].items())
        rows.append(row)
    return rows


def baseline_rows(workload: str, found: dict[str, Any]) -> list[dict[str, str]]:
    """Table rows of the baselines, and what distgnn is beside them on as many workers."""
    rows = []
    for name, one in found.items():
        row = {"graph": workload, "contender, workers": name}
        if "positives_per_second" in one:
            ours = found[f"distgnn, {name.rpartition(', ')[2]}"]
            rate = one["positives_per_second"]["median"]
            row |= {
                "positives/s": f"{rate:,.0f}",
                "own MiB": f"{one['own_bytes'] >> 20:,}",
                "PSS MiB": f"{one['pss_bytes'] >> 20:,}",
                "peak RSS MiB": f"{one['peak_rss_bytes'] >> 20:,}",
            }
            if ours is not one and "positives_per_second" in ours:
                row["distgnn is faster x"] = f"{ours['positives_per_second']['median'] / rate:.1f}"
                row["its own memory x"] = f"{ours['own_bytes'] / one['own_bytes']:.2f}"
                row["its PSS x"] = f"{ours['pss_bytes'] / one['pss_bytes']:.2f}"
            row["stages ms"] = " ".join(f"{s} {ms:.0f}" for s, ms in one["stages_ms"].items())
        rows.append(row)
    return rows


def show(rows: list[dict[str, str]]) -> None:
    """A table without the stages, which stand in the lines above it."""
    columns = [c for c in dict.fromkeys(key for row in rows for key in row) if not c.startswith("stages")]
    if rows:
        print(format_table([{column: row.get(column, "-") for column in columns} for row in rows], columns))


def main(arguments: list[str] | None = None) -> int:
    """Run the cells, print the tables, write the figures."""
    options = _parser().parse_args(arguments)
    if len(os.sched_getaffinity(0)) < WORKERS:
        print(f"{WORKERS} workers need a core each, and this process has {len(os.sched_getaffinity(0))}")
        return 2
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    figures: dict[str, Any] = {"rounds": options.rounds, "steps": options.steps, "cells": [], "baselines": {}}
    tables: dict[bool, list[dict[str, str]]] = {True: [], False: []}
    failed = []
    for workload, kind in itertools.product(options.workloads.split(","), options.kinds.split(",")):
        new: list[tuple[str, list[dict[str, str]], dict[str, Any]]] = []
        if kind == "baselines":
            found = figures["baselines"][workload] = baselines(workload, options)
            new = [(f"{workload}, {name}", [], one) for name, one in found.items()]
            new.append(("", baseline_rows(workload, found), {}))
        else:
            for method in options.partitions.split(","):
                one = cell(workload, method, kind, options)
                figures["cells"].append(one)
                new.append((f"{workload}, {method}, {kind}", [] if "failed" in one else rows_of(one), one))
        for name, rows, one in new:
            tables[kind == "baselines"] += rows
            for row in rows:
                print(", ".join(f"{column} {value}" for column, value in row.items()), flush=True)
            if "failed" in one:
                failed.append(name)
                print(f"FAIL {name}: {one['failed']}", flush=True)
            if "unavailable" in one:
                print(f"{name} was not run: {one['unavailable']}", flush=True)
        write_json(options.json, figures)
    if not options.peer_python and "baselines" in options.kinds.split(","):
        print("PyG was not run: --peer-python names an interpreter with torch_geometric and pyg-lib or torch_sparse")
    for table in tables.values():
        show(table)
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    result = parser("Scaling from one worker to two, beside its bound and beside the usual ways.")
    result.add_argument("--workloads", default="gowalla,w2", help="of w1, w2, flat and the names of `distgnn datasets`")
    result.add_argument("--kinds", default="strong,weak,baselines", help="of them")
    result.add_argument("--partitions", default="metis,random", help="methods")
    result.add_argument("--model", default="lightgcn")
    result.add_argument("--dim", type=int, default=64)
    result.add_argument("--fanout", default="10,10")
    result.add_argument("--batch", type=int, default=2048, help="positives of a step at W = 1")
    result.add_argument("--steps", type=int, default=40, help="of a round")
    result.add_argument("--baseline-steps", type=int, default=8, help="of a round of what replicates everything")
    result.add_argument("--rounds", type=int, default=3)
    result.add_argument("--peer-python", default="", metavar="PATH", help="interpreter that PyG runs with")
    result.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return result


if __name__ == "__main__":
    exit_with(main)
