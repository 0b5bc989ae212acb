"""How fast are full ranking and layer-wise inference, next to plain torch and to what the machine allows?

    python -m benchmarks.evaluation --json OUT.json

Ranking: the best 20 and 100 of the whole catalogue for some of a workload's users, their training items left out, by
inner products of 64 random numbers. The limit is a large square matrix product, the better of torch's and NumPy's, at 2
operations a number, a user and an item. `exact` also ranks each user's first of eight targets exactly. torch has blocks
of as many users: a product, -inf, `topk`; `kept` makes its products into the same memory each time.

Inference: two layers on all nodes, 64 wide. A layer reads a row of 256 bytes and an index of 4 for each edge; next to
it stand a copy of memory (read and written) and a gather of the same rows.

Medians of three rounds in which the contenders take turns, each in a process of its own; a round before them for
compilation and page faults.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.evaluation_contenders import DIM, EDGES_AT_ONCE, SQUARE
from benchmarks.harness import Contender, exit_with, parser, write_json
from benchmarks.workloads import csc_of
from distgnn.report import format_table

ROUNDS = 3
LENGTHS = (20, 100)
ENCODERS = ("lightgcn", "graphsage")
RANKING = ("distgnn", "distgnn, exact", "torch", "torch, kept")
INFERENCE = ("distgnn", "torch.sparse", "scatter")


def started(name: str, folder: Path, threads: int) -> Contender:
    """A contender that is ready."""
    command = [sys.executable, "-m", "benchmarks.evaluation_contenders", name, str(folder), str(threads)]
    contender = Contender(name, command)
    if contender.error:
        raise RuntimeError(f"{name}: {contender.error}")
    return contender


def rounds(requests: list[tuple[Contender, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Median, least and most seconds of each request, and the peak memory of its process."""
    answers: list[list[dict[str, Any]]] = [[] for _ in requests]
    for _ in range(ROUNDS + 1):
        for (contender, request), found in zip(requests, answers, strict=True):
            found.append(contender.ask(**request))
    figures = []
    for found in answers:
        seconds = [answer["seconds"] for answer in found[1:]]
        figures.append(
            {
                "first_seconds": found[0]["seconds"],
                "seconds": {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)},
                "peak_bytes": found[-1]["peak_bytes"],
            }
        )
    return figures


def measure_ranking(name: str, threads: int, users: int) -> list[dict[str, Any]]:
    """Cases of a workload."""
    folder = csc_of(name)
    contenders = [started(f"rank {contender}", folder, threads) for contender in (*RANKING, "limit")]
    users = min(users, contenders[0].facts["n_users"])
    cases = []
    for k in LENGTHS:
        *found, limit = rounds([(c, {} if c.name == "rank limit" else {"users": users, "k": k}) for c in contenders])
        peak = 2 * SQUARE**3 / limit["seconds"]["min"]
        for contender, figures in zip(RANKING, found, strict=True):
            operations = 2 * DIM * users * contenders[0].facts["n_items"] / figures["seconds"]["median"]
            case = {"workload": name, "threads": threads, "k": k, "users": users, "contender": contender}
            rates = {
                "users_per_second": users / figures["seconds"]["median"],
                "operations_per_second": operations,
                "limit_operations_per_second": peak,
            }
            cases.append({**case, **rates, **figures})
    for contender in contenders:
        contender.end()
    return cases


def measure_inference(name: str, threads: int) -> list[dict[str, Any]]:
    """Cases of a workload."""
    folder = csc_of(name)
    contenders = [started(f"infer {contender}", folder, threads) for contender in (*INFERENCE, "copy", "gather")]
    cases = []
    for encoder in ENCODERS:
        limits = ("infer copy", "infer gather")
        requests = [(c, {} if c.name in limits else {"encoder": encoder}) for c in contenders]
        *found, copy, gather = rounds(requests)
        for contender, figures in zip(INFERENCE, found, strict=True):
            edges = 2 * contenders[0].facts["edges"] / figures["seconds"]["median"]
            case = {"workload": name, "threads": threads, "encoder": encoder, "contender": contender}
            rates = {
                "edges_per_second": edges,
                "bytes_per_second": edges * (4 * DIM + 4),
                "copy_bytes_per_second": 2 * 4 * (1 << 26) / copy["seconds"]["min"],
                "gathered_rows_per_second": EDGES_AT_ONCE / gather["seconds"]["min"],
            }
            cases.append({**case, **rates, **figures})
    for contender in contenders:
        contender.end()
    return cases


def print_ranking(cases: list[dict[str, Any]]) -> None:
    """Each case with its part of the limit."""
    rows = [
        {
            "workload": case["workload"],
            "threads": case["threads"],
            "k": case["k"],
            "contender": case["contender"],
            "users/s": f"{case['users_per_second']:.0f}",
            "GFLOP/s": f"{case['operations_per_second'] / 1e9:.0f}",
            "of limit": f"{case['operations_per_second'] / case['limit_operations_per_second']:.0%}",
            "peak MB": f"{case['peak_bytes'] / 1e6:.0f}",
        }
        for case in cases
    ]
    print(format_table(rows, list(rows[0])), flush=True)


def print_inference(cases: list[dict[str, Any]]) -> None:
    """Each case next to the memory's speed."""
    rows = [
        {
            "workload": case["workload"],
            "threads": case["threads"],
            "encoder": case["encoder"],
            "contender": case["contender"],
            "M edges/s": f"{case['edges_per_second'] / 1e6:.1f}",
            "GB/s": f"{case['bytes_per_second'] / 1e9:.1f}",
            "of copy": f"{case['bytes_per_second'] / case['copy_bytes_per_second']:.0%}",
            "of gather": f"{case['edges_per_second'] / case['gathered_rows_per_second']:.0%}",
            "peak MB": f"{case['peak_bytes'] / 1e6:.0f}",
        }
        for case in cases
    ]
    print(format_table(rows, list(rows[0])), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    result = parser("Full ranking and layer-wise inference next to plain torch and to the machine's limits.")
    result.add_argument("--ranking", default="gowalla,w1,w2", help="workloads that are ranked, by commas; none: -")
    result.add_argument("--inference", default="w1", help="workloads that are propagated over, likewise")
    result.add_argument("--threads", default="1,2", help="numbers of threads, by commas")
    result.add_argument("--users", type=int, default=4096, help="of a workload, that are ranked for")
    options = result.parse_args(arguments)
    figures: dict[str, list[dict[str, Any]]] = {"ranking": [], "inference": []}
    for threads in map(int, options.threads.split(",")):
        for name in options.ranking.split(",") if options.ranking != "-" else ():
            figures["ranking"] += (cases := measure_ranking(name, threads, options.users))
            print_ranking(cases)
        for name in options.inference.split(",") if options.inference != "-" else ():
            figures["inference"] += (cases := measure_inference(name, threads))
            print_inference(cases)
    write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    exit_with(main)
