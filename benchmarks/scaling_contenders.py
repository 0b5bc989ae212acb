"""Groups of workers that `benchmarks.scaling` compares, and the usual ways beside them."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Contender
from benchmarks.training import run
from benchmarks.workloads import csc_of, dataset_of

LOSS = {
    "strong": ["loss.name=sampled_softmax", "loss.temperature=0.1"],
    "weak": ["loss.name=bpr"],
}
WORKERS = 2
PEER = Path(__file__).parent / "peers" / "pyg_training.py"
BASELINES = {
    "distgnn": ("benchmarks.scaling_worker", ()),
    "DDP, dense": ("benchmarks.scaling_baseline", ()),
    "DDP, sparse": ("benchmarks.scaling_baseline", ("--sparse",)),
}
WARM_UP = 10
LONGEST_WAIT = 60.0


class Group:
    """Workers of one group, each a process on its own core; worker 0 takes the requests.

    Args:
        name: what to call it. module: `python -m` of a worker. workers: W. settings: `section.key=value`.
        core: of the first worker. more: options of the module.
    """

    def __init__(
        self, name: str, module: str, workers: int, settings: list[str], core: int = 0, more: tuple[str, ...] = ()
    ) -> None:
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix="distgnn-scaling-")
        common = [sys.executable, "-m", module, "--workers", str(workers), *more]
        common += ["--init-method", f"file://{self._folder.name}/store"]
        common += [word for setting in settings for word in ("--set", setting)]
        commands = [[*common, "--rank", str(rank), "--core", str(core + rank)] for rank in range(workers)]
        self._others = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in commands[1:]]
        self._first = Contender(name, commands[0], keep_errors=True)

    def ask(self, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """Every worker's answer.

        Raises:
            RuntimeError: worker 0 has ended; with what it said last.
        """
        if self._first.error:
            raise RuntimeError(f"{self.name}: {self._first.error}")
        answer: list[dict[str, Any]] = self._first.ask(do=do, **arguments)["workers"]
        return answer

    def end(self) -> None:
        """Let the processes end."""
        self._first.end()
        for process in self._others:
            if self._first.error:
                process.kill()
            try:
                process.wait(LONGEST_WAIT)
            except subprocess.TimeoutExpired:
                process.kill()
        self._folder.cleanup()


def settings_of(workload: str, method: str, kind: str, batch: int, options: argparse.Namespace) -> list[str]:
    """Of a run, but for its workers and topology."""
    with contextlib.redirect_stdout(sys.stderr):
        dataset = dataset_of(workload, WORKERS, method)
    return [
        f"data.path={dataset.path}",
        f"partition.parts={WORKERS}",
        f"partition.method={method}",
        f"sampler.fanout={options.fanout}",
        "sampler.time_respecting=false",
        f"model.encoder={options.model}",
        f"model.dim={options.dim}",
        "optim.lr=0.005",
        f"train.batch_size={batch}",
        "cluster.threads_per_worker=1",
        *LOSS[kind],
        *options.overrides,
    ]


def rate_of(answers: list[dict[str, Any]]) -> float:
    """Positives a second of a group's round."""
    return sum(a["positives"] for a in answers) / max(a["seconds"] for a in answers)


def busiest(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The worker that has computed longest."""
    return max(answers, key=lambda a: float(a["cpu_seconds"]))


def spread_of(rates: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(rates), "lowest": min(rates), "highest": max(rates)}


def baselines(workload: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every way on one worker and on two, one after the other: rates of rounds, stages and memory."""
    found: dict[str, Any] = {}
    for name, (module, more) in BASELINES.items():
        for workers in (1, WORKERS):
            settings = settings_of(workload, "metis", "weak", options.batch, options)
            group = Group(name, module, workers, [*settings, f"cluster.workers={workers}"], 0, more)
            steps = options.steps if name == "distgnn" else options.baseline_steps
            try:
                group.ask("train", start=0, steps=min(WARM_UP, steps))
                rounds = [group.ask("train", start=WARM_UP + r * steps, steps=steps) for r in range(options.rounds)]
                memory = group.ask("memory")
            except RuntimeError as error:
                found[f"{name}, {workers}"] = {"failed": str(error)}
                continue
            finally:
                group.end()
            stages = busiest(rounds[0])["stages"]
            found[f"{name}, {workers}"] = {
                "positives_per_second": spread_of([rate_of(answers) for answers in rounds]),
                "stages_ms": {stage: 1000 * seconds / steps for stage, seconds in stages.items()},
                "pss_bytes": max(m["pss"] for m in memory),
                "own_bytes": max(m["own"] - m["imports"] for m in memory),
                "peak_rss_bytes": max(m["peak_rss"] for m in memory),
            }
    if options.peer_python:
        for workers in (1, WORKERS):
            found[f"PyG, DDP, {workers}"] = pyg(workload, workers, options)
    return found


def pyg(workload: str, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """PyG's loader under DistributedDataParallel, with a dense embedding; one run."""
    steps = options.baseline_steps
    command = [options.peer_python, str(PEER), str(csc_of(workload)), "--model", options.model]
    command += ["--batch", str(options.batch), "--fanout", options.fanout, "--dim", str(options.dim)]
    command += ["--world", str(workers), "--warm-up", "3", "--seconds", "0", "--least-steps", str(steps), "--trim"]
    with tempfile.TemporaryDirectory(prefix="distgnn-scaling-") as folder:
        command += ["--init-method", f"file://{folder}/store"]
        others = [
            subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.DEVNULL) for rank in range(1, workers)
        ]
        figures = run([*command, "--rank", "0"])
        for process in others:
            if "failed" in figures or "unavailable" in figures:
                process.kill()
            process.wait()
    if "failed" in figures or "unavailable" in figures:
        return figures
    return {
        "positives_per_second": spread_of([figures["positives_per_second"]]),
        "stages_ms": figures["stages_ms"],
        "pss_bytes": figures["pss_bytes"],
        "own_bytes": figures["own_bytes"],
        "peak_rss_bytes": figures["peak_bytes"],
    }
