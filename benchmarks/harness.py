"""What every benchmark needs: the machine and the commit, and a JSON file of figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from distgnn.types import UserError


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in bytes, versions and commit."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=False)
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numba", "numpy")},
        "commit": commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""),
    }


def parser(question: str) -> argparse.ArgumentParser:
    """Options that all benchmarks share."""
    result = argparse.ArgumentParser(description=question)
    result.add_argument("--json", metavar="FILE", help="write the figures there")
    return result


def exit_with(main: Callable[[], int | None]) -> NoReturn:
    """Call a benchmark's main, and exit with its code; a user's mistake is one line and code 2, as of any command."""
    try:
        code = main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


def write_json(path: str | None, figures: dict[str, Any]) -> None:
    """Write figures with the machine; does nothing without a path."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n", encoding="utf-8")


def train(run: Path, overrides: list[str], recipe: str = "") -> None:
    """Train in a process of its own, whose peak memory is then its own, by a recipe's file if one is given.

    Raises:
        RuntimeError: it failed; with the last line that it said.
    """
    options = [part for text in [*overrides, f"run.out={run}"] for part in ("--set", text)]
    if recipe:
        options += ["--config", recipe]
    done = subprocess.run(
        [sys.executable, "-m", "distgnn", "train", *options], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(lines[-1] if lines else f"exit code {done.returncode}")


def records_of(run: Path) -> list[dict[str, Any]]:
    """Training records of a run."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


class Contender:
    """A process that says what it has got ready, and then answers requests; both are lines of JSON.

    Args:
        name: what to call it. command: that starts it. keep_errors: have what it says on stderr at hand, not shown.

    Attributes:
        facts: what it said first. error: the last line of one that ended instead, else empty.
    """

    def __init__(self, name: str, command: list[str], *, keep_errors: bool = False) -> None:
        self.name, self.error = name, ""
        stderr = subprocess.PIPE if keep_errors else None
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        self.facts = self._answer() or {}

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._process.stderr.read().strip().splitlines() if self._process.stderr else []
            self.error = said[-1] if said else f"exit code {self._process.wait()}"
            return None
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            RuntimeError: it has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer is None:
            raise RuntimeError(f"{self.name}: {self.error}")
        return answer

    def end(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
