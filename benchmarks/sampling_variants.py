"""What do the sampler's variants cost a drawn edge, next to the plain uniform draw on the same graph?

    python -m benchmarks.sampling_variants --json OUT.json [--workloads w1,w2]

Steps of 1,024 and 4,096 seed edges, the same ones for every variant, one thread, in one process: the variants take
turns, each with 20 steps for warming up (compilation among them), then the measured ones; medians of three rounds.
Every edge has a timestamp, uniform over a year; `time-respecting` has the seed edges' as cut-offs, and `leaves
uncounted` is that for encoders which do not read degrees. Weights are counts (geometric) or `pareto`, where few edges
hold most of a row. `plain` excludes nothing and knows no time and no weights.
Seconds are the thread's own on the processor, so that what else runs takes less part in them; they count everything
from seed edges to minibatch, and beside it the draws alone, without relabelling and degrees.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.harness import exit_with, parser, write_json
from benchmarks.workloads import attributed_topology
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
    "time, leaves uncounted": {"exclude_targets": False, "time_respecting": True, "leaf_degrees": False},
    "weighted, counts": {"exclude_targets": False, "weighted": True},
    "weighted, pareto": {"exclude_targets": False, "weighted": True},
}
DRAWS = ("draw", "draw_until", "draw_by_weight")  # of a sampler's store


class Clock:
    """Processor seconds that a sampler spends in drawing rows."""

    def __init__(self, sampler: NeighborSampler) -> None:
        self.seconds = 0.0
        for name in DRAWS:
            setattr(sampler.store, name, self._timed(getattr(sampler.store, name)))

    def _timed(self, draw: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.thread_time()
            drawn = draw(*arguments)
            self.seconds += time.thread_time() - started
            return drawn

        return call


def timed(sampler: NeighborSampler, clock: Clock, steps: list[SeedEdges]) -> tuple[float, float]:
    """Processor seconds a drawn edge of the steps after those for warming up: everything, and the draws alone."""
    for seeds in steps[:WARMUP]:
        sampler.sample(seeds, seeds.step)
    clock.seconds, edges, started = 0.0, 0, time.thread_time()
    for seeds in steps[WARMUP:]:
        edges += sampler.sample(seeds, seeds.step).sampled_edges
    return (time.thread_time() - started) / edges, clock.seconds / edges


def measure(name: str, steps: int) -> list[dict[str, Any]]:
    """All cases of a workload."""
    dated, cases = attributed_topology(name), []
    graphs = {v: attributed_topology(name, v.split(", ")[1]) if "weighted" in v else dated for v in VARIANTS}
    for batch in BATCHES:
        order = SeedOrder(dated, batch, 0)
        for fanout in FANOUTS:
            samplers = {v: NeighborSampler(graphs[v], fanout, 0, **options) for v, options in VARIANTS.items()}
            clocks = {variant: Clock(sampler) for variant, sampler in samplers.items()}
            rounds = []
            for round_ in range(ROUNDS):
                first = round_ * (WARMUP + steps)
                seeds = [order.seeds(first + t) for t in range(WARMUP + steps)]
                rounds.append({v: timed(sampler, clocks[v], seeds) for v, sampler in samplers.items()})
            for variant in VARIANTS:
                whole, draws = zip(*(found[variant] for found in rounds), strict=True)
                plain, plain_draws = zip(*(found["plain"] for found in rounds), strict=True)
                cases.append(
                    {
                        "workload": name,
                        "batch": batch,
                        "fanout": list(fanout),
                        "variant": variant,
                        "edges_per_second": statistics.median(1 / seconds for seconds in whole),
                        "cost_of_plain": statistics.median(w / p for w, p in zip(whole, plain, strict=True)),
                        "draws_per_second": statistics.median(1 / seconds for seconds in draws),
                        "draw_of_plain": statistics.median(d / p for d, p in zip(draws, plain_draws, strict=True)),
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
            "M edges/s": f"{case['edges_per_second'] / 1e6:.1f}",
            "a drawn edge, of plain": f"{case['cost_of_plain']:.2f}",
            "M draws/s alone": f"{case['draws_per_second'] / 1e6:.1f}",
            "of plain": f"{case['draw_of_plain']:.2f}",
        }
        for case in cases
    ]
    print(format_table(rows, list(rows[0])), flush=True)


if __name__ == "__main__":
    exit_with(main)
