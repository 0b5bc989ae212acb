"""How would training scale on more machines than there are here, and what would hold it up?

    python -m benchmarks.scaling_model --data gowalla,gowalla-fractal --workers 2,4,8,16,32,64 --json OUT.json

Counted: global steps are really sampled for all W workers in one process (P = W, replicated topology, BPR with uniform
negatives, whose work does not grow with W). That gives every worker's draws, and every byte of every all_to_all.

Modelled: a step takes  compute + sum over its all_to_alls of (W - 1) alpha + busiest / beta.
- busiest: the most bytes that a worker sends or receives in the exchange. alpha, beta: `LINKS`, which are assumptions,
  one link a worker, each as fast however many talk. Nothing of the exchange is hidden behind compute.
- compute on a core of this machine: fixed + draws of the busiest worker x a rate, fitted to steps of a single worker
  that are measured first (sampling included, on the same core).
- compute on a GPU is an assumption, not a measurement: `Gpu`. Sampling is done ahead by the host's cores at the rate
  measured here, and a step takes the longer of the two.
Strong: the same global batch at every W. Weak: the same batch for each worker.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from benchmarks.harness import exit_with, parser, write_json
from benchmarks.sampled_steps import SharedSteps, StepCount, Steps, WholeGraph, bytes_by_kind
from benchmarks.workloads import csc_of
from distgnn.config_reading import load_config
from distgnn.graph import Topology
from distgnn.report import format_table


@dataclass(frozen=True)
class Link:
    """What a worker exchanges by: alpha, seconds a message; beta, bytes a second in each direction."""

    alpha: float
    beta: float


# About nine tenths of the nominal rate, and a message's latency through the library as it is commonly measured.
LINKS = {
    "PCIe 4.0 x16": Link(10e-6, 25e9),
    "NVLink 4": Link(5e-6, 400e9),
    "100 GbE": Link(30e-6, 11e9),
    "400 Gb InfiniBand": Link(5e-6, 45e9),
}


@dataclass(frozen=True)
class Gpu:
    """Assumed of one: a step as memory traffic. A draw moves 4 rows (read and written, forward and backward); a wanted
    row 2 (in, and its gradient out); a row that is moved 7 (gradient in; row and two moments in and out).

    Attributes:
        memory: bytes a second that irregular row traffic reaches. fixed: seconds a step, launches and the rest.
        sampling_threads: host cores that sample for it.
    """

    memory: float = 1e12
    fixed: float = 1e-3
    sampling_threads: int = 8


@dataclass(frozen=True)
class Core:
    """Measured of one core: seconds a step, seconds a draw; draws a second of the sampler alone."""

    fixed: float
    per_draw: float
    draws_per_second: float


def measure_core(name: str, dim: int, batches: list[int], seconds: float) -> tuple[Core, list[dict[str, float]]]:
    """Fit a step of a single worker, on one core, at several batch sizes."""
    found = []
    for batch in batches:
        command = [sys.executable, "-m", "benchmarks.peers.distgnn_training", str(csc_of(name)), "--expand", "all"]
        command += ["--batch", str(batch), "--dim", str(dim), "--seconds", str(seconds), "--threads", "1"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    edges, step = (np.array([one[key] for one in found]) for key in ("edges_a_step", "step_ms"))
    # Relative residuals: a small batch's step counts as much as a large one's.
    (fixed, per_draw), _ = nnls(np.stack([1 / step, edges / step], 1), np.ones(len(step)))
    kept = [
        {"batch": b, "step_ms": s, "draws": e} for b, s, e in zip(batches, step.tolist(), edges.tolist(), strict=True)
    ]
    return Core(fixed / 1000, per_draw / 1000, _sampler_rate(name)), kept


def _sampler_rate(name: str) -> float:
    """Draws a second of one thread that does nothing else."""
    graph = WholeGraph.of(name)
    shared = SharedSteps(graph.topology(), Steps(batch=1024, negatives="uniform"))
    nobody = np.zeros(len(graph.degree), np.int64)
    rates = []
    for step in shared.numbers():
        (batch,) = shared.shares(step, nobody, 1)
        rates.append(batch.sampled_edges / batch.seconds)
    return float(np.median(rates))


def step_terms(count: StepCount, dim: int, link: Link, core: Core, gpu: Gpu | None) -> dict[str, float]:
    """Seconds of a step by what they are for; without a GPU on cores as measured."""
    workers = len(count.seeds)
    exchanges = count.exchanges(dim, partitioned=False, in_batch=False) if workers > 1 else []
    terms = {
        "latency": len(exchanges) * (workers - 1) * link.alpha,
        "bandwidth": sum(one.busiest for one in exchanges) / link.beta,
    }
    if gpu is None:
        return terms | {"fixed": core.fixed, "compute": float(count.edges.max()) * core.per_draw}
    rows = 4 * count.edges + 2 * count.nodes + 7 * count.moved
    device = {**terms, "fixed": gpu.fixed, "compute": float(rows.max()) * dim * 4 / gpu.memory}
    sampling = float(count.edges.max()) / (core.draws_per_second * gpu.sampling_threads)
    total = sum(device.values())
    return device | {"sampling": max(0.0, sampling - total)}  # what is not hidden


def counts_of(topology: Topology, graph: WholeGraph, method: str, workers: int, steps: Steps) -> list[StepCount]:
    """Of all sampled steps."""
    shared = SharedSteps(topology, steps)
    config = load_config(None, [f"train.batch_size={steps.batch}"])
    owner = graph.partition(method, workers, config) if workers > 1 else np.zeros(len(graph.degree), np.int64)
    return [shared.count(step, owner, workers) for step in shared.numbers()]


def facts(counts: list[StepCount], dim: int) -> dict[str, Any]:
    """Means over the steps: draws, rows, megabytes by kind (the topology's where it is partitioned), messages."""
    exchanges = [count.exchanges(dim, partitioned=True, in_batch=False) for count in counts]
    sizes = [bytes_by_kind(one) for one in exchanges]
    workers = len(counts[0].seeds)
    return {
        "draws": float(np.mean([count.edges.sum() for count in counts])),
        "busiest_draws": float(np.mean([count.edges.max() for count in counts])),
        "remote_rows": float(np.mean([count.remote_rows for count in counts])),
        "megabytes": {kind: float(np.mean([one[kind] for one in sizes])) / 1e6 for kind in sizes[0]},
        "messages": len(counts[0].exchanges(dim, partitioned=False, in_batch=False)) * workers * (workers - 1),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, count, model, print."""
    options = _parser().parse_args(arguments)
    workers = [int(w) for w in options.workers.split(",")]
    data = options.data.split(",")
    if options.core:
        earlier = json.loads(Path(options.core).read_text(encoding="utf-8"))
        core, measured = Core(**earlier["core"]), earlier["measured"]
    else:
        batches = [int(b) for b in options.measured.split(",")]
        core, measured = measure_core(data[0], options.dim, batches, options.seconds)
    print(f"measured, one core: {_sentence(core, measured)}", flush=True)
    counted, predicted = [], []
    for name in data:
        graph = WholeGraph.of(name)
        topology = graph.topology()
        for method in ("both", "random"):
            for mode in ("strong", "weak"):
                of = {}
                for w in [1, *workers]:
                    batch = options.strong if mode == "strong" else options.weak * w
                    steps = Steps(batch=batch, steps=options.steps, seed=options.seed, negatives="uniform")
                    of[w] = counts_of(topology, graph, method, w, steps)
                    where = {"data": name, "method": method, "mode": mode, "workers": w}
                    counted.append({**where, **facts(of[w], options.dim)})
                where = {"data": name, "method": method, "mode": mode}
                predicted += [{**where, **one} for one in _predictions(of, core, options.dim)]
        print(_counted_table([c for c in counted if c["data"] == name]), end="\n\n", flush=True)
        print(_predicted_table([p for p in predicted if p["data"] == name], workers), end="\n\n", flush=True)
    write_json(
        options.json,
        {
            "options": vars(options),
            "core": asdict(core),
            "measured": measured,
            "gpu": asdict(Gpu()),
            "links": {name: asdict(link) for name, link in LINKS.items()},
            "counted": counted,
            "predicted": predicted,
        },
    )
    return 0


def _predictions(of: dict[int, list[StepCount]], core: Core, dim: int) -> list[dict[str, Any]]:
    """Efficiency at every W, and the terms of a step, by link and by what computes."""
    result = []
    for link in LINKS:
        for gpu in (None, Gpu()):
            if gpu is None and link in ("PCIe 4.0 x16", "NVLink 4"):
                continue  # links of GPUs in one host
            terms = {
                w: {k: float(np.mean([one[k] for one in each])) for k in each[0]}
                for w, each in (
                    (w, [step_terms(count, dim, LINKS[link], core, gpu) for count in counts])
                    for w, counts in of.items()
                )
            }
            seeds = {w: float(np.mean([count.seeds.sum() for count in counts])) for w, counts in of.items()}
            rate = {w: seeds[w] / sum(terms[w].values()) for w in of}
            efficiency = {w: rate[w] / (w * rate[1]) for w in of}
            bound = {w: _bound(of, w) for w in of}
            result.append(
                {
                    "link": link,
                    "compute": "core" if gpu is None else "GPU (assumed)",
                    "efficiency": efficiency,
                    "bound": bound,
                    "seconds": terms,
                }
            )
    return result


def _bound(of: dict[int, list[StepCount]], workers: int) -> float:
    """Efficiency where draws are all that takes time: frontiers overlap, and shares are uneven."""
    one, busiest = (np.mean([count.edges.max() / count.seeds.sum() for count in of[w]]) for w in (1, workers))
    return float(one / (workers * busiest))


def _sentence(core: Core, measured: list[dict[str, float]]) -> str:
    steps = ", ".join(f"{m['batch']:,} edges {m['step_ms']:.1f} ms ({m['draws']:,.0f} draws)" for m in measured)
    return (
        f"{steps}; fitted {1000 * core.fixed:.2f} ms + {1e9 * core.per_draw:.0f} ns a draw; the sampler alone draws "
        f"{core.draws_per_second / 1e6:.0f} M a second"
    )


def _counted_table(counted: list[dict[str, Any]]) -> str:
    rows = []
    for case in counted:
        row = {
            "data": case["data"],
            "partitions": "random" if case["method"] == "random" else "METIS",
            "scaling": case["mode"],
            "W": case["workers"],
            "k draws": f"{case['draws'] / 1e3:,.0f}",
            "k draws, busiest": f"{case['busiest_draws'] / 1e3:,.1f}",
            "k remote rows": f"{case['remote_rows'] / 1e3:,.1f}",
        }
        size = case["megabytes"]
        row["rows and gradients MB"] = f"{size['rows'] + size['gradients']:,.1f}"
        row["messages"] = f"{case['messages']:,}"
        row["topology MB"] = f"{size['topology']:,.1f}"
        rows.append(row)
    return format_table(rows, list(rows[0]))


def _predicted_table(predicted: list[dict[str, Any]], workers: list[int]) -> str:
    rows = []
    for case in predicted:
        last = case["seconds"][workers[-1]]
        most = max(last, key=lambda term: last[term])
        row = {
            "data": case["data"],
            "partitions": "random" if case["method"] == "random" else "METIS",
            "scaling": case["mode"],
            "compute": case["compute"],
            "link": case["link"],
        }
        row |= {f"W = {w}": f"{case['efficiency'][w]:.0%}" for w in workers}
        row["exchange over compute from W"] = _first(case["seconds"], workers)
        row[f"most at W = {workers[-1]}"] = f"{most} {last[most] / sum(last.values()):.0%}"
        rows.append(row)
    bounds = []
    for mode in ("strong", "weak"):
        for method in ("both", "random"):
            one = next(p for p in predicted if p["mode"] == mode and p["method"] == method)
            name = "random" if method == "random" else "METIS"
            bounds.append(
                {"data": one["data"], "partitions": name, "scaling": mode, "compute": "bound by draws", "link": "-"}
                | {f"W = {w}": f"{one['bound'][w]:.0%}" for w in workers}
            )
    return format_table([*bounds, *rows], list(rows[0]))


def _first(seconds: dict[int, dict[str, float]], workers: list[int]) -> str:
    """Where exchanging takes longer than computing."""
    for w in workers:
        terms = seconds[w]
        if terms["latency"] + terms["bandwidth"] > terms["compute"] + terms["fixed"] + terms.get("sampling", 0.0):
            return str(w)
    return "-"


def _parser() -> argparse.ArgumentParser:
    result = parser(__doc__)
    result.add_argument(
        "--data", default="gowalla,gowalla-fractal", help="workloads or datasets; the first is measured"
    )
    result.add_argument("--workers", default="2,4,8,16,32,64")
    result.add_argument("--strong", type=int, default=8192, help="global batch of strong scaling")
    result.add_argument("--weak", type=int, default=1024, help="batch of a worker in weak scaling")
    result.add_argument("--dim", type=int, default=64)
    result.add_argument("--steps", type=int, default=3, help="sampled for each count, spread over an epoch")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--measured", default="128,512,2048,8192", help="batches of the measured single-worker steps")
    result.add_argument("--core", metavar="FILE", help="take these steps from the figures of an earlier run instead")
    result.add_argument("--seconds", type=float, default=3.0, help="each of these is measured for at least")
    return result


if __name__ == "__main__":
    exit_with(main)
