"""How fast are neighbours sampled, next to the peers and to what memory allows?

    python -m benchmarks.sampler --json OUT.json [--peer-python .venv-peers/bin/python]

Batches of 1,024 random seeds without replacement, relabelled; 20 for warming up (compilation among them), then 200 (of
torch_sparse, which takes a second for a few of them, 3 and 20); medians of three rounds in which the contenders take
turns, each in a process of its own. Equal work: PyG expands only the nodes that a hop has newly reached (`expand =
new`), GraphBolt all of them (`all`); we do both. The ceiling is dependent pairs of random reads from arrays of the same
size, a pair for each edge.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import Contender, exit_with, parser, write_json
from benchmarks.workloads import csc_of
from distgnn.report import format_table

FANOUTS = ((15, 10), (10, 10, 5))
ROUNDS, WARMUP, BATCHES = 3, 20, 200
FEWER = {"ceiling": (2, 20), "torch_sparse": (3, 20)}  # warming up and measured
RULES = {"distgnn": ("all", "new"), "ceiling": ("-",), "pyg": ("new",), "torch_sparse": ("new",), "graphbolt": ("all",)}
PEERS = ("pyg", "torch_sparse", "graphbolt")


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(name: str, options: Any, missing: dict[str, str]) -> list[dict[str, Any]]:
    """All cases of a workload."""
    folder = csc_of(name)
    contenders = []
    for contender in RULES:
        python = options.peer_python if contender in PEERS and options.peer_python else sys.executable
        command = [python, str(Path(__file__).with_name("sampling_contenders.py")), contender, str(folder)]
        process = Contender(contender, command, keep_errors=contender in PEERS)
        why = process.error or process.facts.get("missing", "")
        if why:
            missing[contender] = why
            print(f"{contender}: left out, {why}", flush=True)
        else:
            contenders.append(process)
    cases = []
    for threads in options.threads:
        for fanout in FANOUTS:
            requests = [(c, rule) for c in contenders for rule in RULES[c.name]]
            found: dict[tuple[str, str], list[dict[str, Any]]] = {(c.name, rule): [] for c, rule in requests}
            for round_ in range(ROUNDS):
                for contender, rule in requests:
                    if contender.name == "ceiling" and fanout != FANOUTS[0]:
                        continue
                    warmup, batches = FEWER.get(contender.name, (WARMUP, BATCHES))
                    answer = contender.ask(
                        fanout=fanout, expand=rule, threads=threads, batches=batches, warmup=warmup, seed=round_
                    )
                    found[contender.name, rule].append(answer)
            for (contender_name, rule), answers in found.items():
                if answers:
                    cases.append(
                        {
                            "contender": contender_name,
                            "workload": name,
                            "fanout": list(fanout),
                            "expand": rule,
                            "threads": threads,
                            "edges_per_second": spread([a["edges"] / a["seconds"] for a in answers]),
                            "batches_per_second": spread([a["batches"] / a["seconds"] for a in answers]),
                        }
                    )
    for contender in contenders:
        contender.end()
    return cases


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    result = parser("Neighbour sampling next to the peers and to the memory's ceiling.")
    result.add_argument("--workloads", default="w1,w2,flat,gowalla", help="names, by commas")
    result.add_argument("--threads", default="1,2", help="numbers of threads, by commas")
    result.add_argument("--peer-python", help="interpreter of an environment that has the peers (make peers)")
    options = result.parse_args(arguments)
    options.threads = [int(n) for n in options.threads.split(",")]
    cases: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for name in options.workloads.split(","):
        cases += measure(name, options, missing)
        print_table([case for case in cases if case["workload"] == name])
    ceilings = {
        f"{case['workload']}, {case['threads']}": case["edges_per_second"]["median"]
        for case in cases
        if case["contender"] == "ceiling"
    }
    figures = {
        "ceiling_gathers_per_second": ceilings,
        "cases": [case for case in cases if case["contender"] != "ceiling"],
        "missing": missing,
    }
    write_json(options.json, figures)
    return 0


def print_table(cases: list[dict[str, Any]]) -> None:
    """One workload's figures, each with its part of the ceiling."""
    ceiling = {c["threads"]: c["edges_per_second"]["median"] for c in cases if c["contender"] == "ceiling"}
    rows = []
    for case in cases:
        speed = case["edges_per_second"]
        rows.append(
            {
                "workload": case["workload"],
                "fanout": "-" if case["contender"] == "ceiling" else ", ".join(map(str, case["fanout"])),
                "threads": case["threads"],
                "contender": case["contender"],
                "expand": case["expand"],
                "M edges/s": f"{speed['median'] / 1e6:.1f}",
                "from-to": f"{speed['min'] / 1e6:.1f}-{speed['max'] / 1e6:.1f}",
                "batches/s": f"{case['batches_per_second']['median']:.0f}",
                "of ceiling": f"{speed['median'] / ceiling[case['threads']]:.0%}",
            }
        )
    print(format_table(rows, list(rows[0])), flush=True)


if __name__ == "__main__":
    exit_with(main)
