"""What do the sampler's variants cost a drawn edge, next to the plain uniform draw on the same graph?

    python -m benchmarks.sampling_variants --json OUT.json [--workloads w1,w2]

Steps of 1,024 and 4,096 seed edges, the same ones for every variant, one thread, in one process: the variants take
turns, each with 20 steps for warming up (compilation among them), then the measured ones; medians of three rounds.
Every edge has a timestamp, uniform over a year; `time-respecting` has the seed edges' as cut-offs. `plain` excludes
nothing and knows no time. Seconds are the thread's own on the processor, so that what else runs takes less part in
them; they count everything from seed edges to minibatch.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

from benchmarks.harness import parser, write_json
from benchmarks.workloads import dated_topology
from distgnn.report import format_table
from distgnn.sampler import NeighborSampler, SeedOrder
from distgnn.types import SeedEdges

FANOUTS = ((15, 10), (10, 10))
BATCHES = (1024, 4096)
ROUNDS, WARMUP = 3, 20
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"exclude_targets": False},
    "exclusion": {"exclude_targets": True},
    "time-respecting": {"exclude_targets": False, "time_respecting": True},
}


def timed(sampler: NeighborSampler, steps: list[SeedEdges]) -> tuple[int, float]:
    """Drawn edges and processor seconds of the steps after those for warming up."""
    for seeds in steps[:WARMUP]:
        sampler.sample(seeds, seeds.step)
    edges, started = 0, time.thread_time()
    for seeds in steps[WARMUP:]:
        edges += sampler.sample(seeds, seeds.step).sampled_edges
    return edges, time.thread_time() - started


def measure(name: str, steps: int) -> list[dict[str, Any]]:
    """All cases of a workload."""
    graph, cases = dated_topology(name), []
    for batch in BATCHES:
        order = SeedOrder(graph, batch, 0)
        for fanout in FANOUTS:
            samplers = {v: NeighborSampler(graph, fanout, 0, **options) for v, options in VARIANTS.items()}
            rounds = []
            for round_ in range(ROUNDS):
                first = round_ * (WARMUP + steps)
                seeds = [order.seeds(first + t) for t in range(WARMUP + steps)]
                rounds.append({variant: timed(sampler, seeds) for variant, sampler in samplers.items()})
            for variant in VARIANTS:
                drawn = [found[variant][0] / found[variant][1] for found in rounds]
                plain = [found["plain"][0] / found["plain"][1] for found in rounds]
                cases.append(
                    {
                        "workload": name,
                        "batch": batch,
                        "fanout": list(fanout),
                        "variant": variant,
                        "edges_a_step": sum(found[variant][0] for found in rounds) / (ROUNDS * steps),
                        "edges_per_second": statistics.median(drawn),
                        "cost_of_plain": statistics.median(p / d for p, d in zip(plain, drawn, strict=True)),
                    }
                )
    return cases


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    result = parser("The sampler's variants next to the plain draw.")
    result.add_argument("--workloads", default="w1,w2", help="names, by commas")
    result.add_argument("--steps", type=int, default=100, help="measured steps of a case and round")
    options = result.parse_args(arguments)
    cases: list[dict[str, Any]] = []
    for name in options.workloads.split(","):
        found = measure(name, options.steps)
        print_table(found)
        cases += found
    write_json(options.json, {"cases": cases})
    return 0


def print_table(cases: list[dict[str, Any]]) -> None:
    """One workload's figures."""
    rows = [
        {
            "workload": case["workload"],
            "batch": case["batch"],
            "fanout": ", ".join(map(str, case["fanout"])),
            "variant": case["variant"],
            "edges a step": f"{case['edges_a_step']:,.0f}",
            "M edges/s": f"{case['edges_per_second'] / 1e6:.1f}",
            "a drawn edge, of plain": f"{case['cost_of_plain']:.2f}",
        }
        for case in cases
    ]
    print(format_table(rows, list(rows[0])), flush=True)


if __name__ == "__main__":
    sys.exit(main())
