"""How much memory of its own does a worker take, and how much less with two of them?

    python -m benchmarks.memory --data w2 --dim 128 --json OUT.json

Trains a few steps with one worker and with two, evaluates, exports, and reads each worker's anonymous resident memory
(RssAnon: without mapped files, which the workers of a host share) all the while. Printed: the most of it beyond what
the imports alone take.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import exit_with, parser, train, write_json
from benchmarks.workloads import options_of
from distgnn.report import format_table

_IMPORTS = "import distgnn.training.run, distgnn.training.launch; print(open('/proc/self/status').read())"


def anonymous_bytes(status: str) -> int:
    """RssAnon of a /proc/PID/status text, in bytes; 0 where the process has none left."""
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def after_imports() -> int:
    """What a worker has before it does anything."""
    done = subprocess.run([sys.executable, "-c", _IMPORTS], capture_output=True, text=True, check=True)
    return anonymous_bytes(done.stdout)


class Watch(threading.Thread):
    """Reads the memory of all processes that this one has started, directly or not, ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most: dict[int, int] = {}  # by process id
        self._over = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while not self._over.wait(0.1):
            ours = {os.getpid()}
            for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda f: int(f.name)):  # parents come first
                try:
                    status = (folder / "status").read_text()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                pid = int(folder.name)
                if int(status.split("PPid:", 1)[1].split(None, 1)[0]) in ours:
                    ours.add(pid)
                    self.most[pid] = max(anonymous_bytes(status), self.most.get(pid, 0))

    def stop(self, workers: int) -> list[int]:
        """The most that each worker has held (what starts several of them holds less)."""
        self._over.set()
        self.join()
        return sorted(self.most.values(), reverse=True)[:workers]


def main(arguments: list[str] | None = None) -> int:
    """Run one and two workers, print the table."""
    options = _parser().parse_args(arguments)
    base = after_imports()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="distgnn-memory-") as folder:
        for workers in (1, 2):
            watch = Watch()
            watch.start()
            started = time.perf_counter()
            train(
                Path(folder) / str(workers),
                [
                    *options_of(options.data),
                    f"partition.parts={max(2, workers)}",
                    "partition.method=random",
                    f"cluster.workers={workers}",
                    f"model.dim={options.dim}",
                    "sampler.fanout=10,10",
                    "train.batch_size=2048",
                    f"train.max_steps={options.steps}",
                    "run.tensorboard=false",
                    *options.overrides,
                ],
            )
            held = [most - base for most in watch.stop(workers)]
            rows.append({"workers": workers, "bytes": held, "seconds": time.perf_counter() - started})
    most = [max(row["bytes"]) for row in rows]
    table = [
        {
            "workers": row["workers"],
            "GiB beyond imports": ", ".join(f"{held / 2**30:.2f}" for held in row["bytes"]),
            "of one worker": f"{max(row['bytes']) / most[0]:.0%}",
        }
        for row in rows
    ]
    print(format_table(table, list(table[0])))
    print(f"imports alone: {base / 2**30:.2f} GiB")
    write_json(options.json, {"data": options.data, "dim": options.dim, "imports": base, "runs": rows})
    return 0


def _parser() -> argparse.ArgumentParser:
    result = parser("Anonymous memory of a worker, with one and with two of them.")
    result.add_argument("--data", default="w2", help="a workload, or a name of `distgnn datasets` (w2)")
    result.add_argument("--dim", type=int, default=128, help="embedding width (128)")
    result.add_argument("--steps", type=int, default=20, help="training steps (20)")
    result.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return result


if __name__ == "__main__":
    exit_with(main)
