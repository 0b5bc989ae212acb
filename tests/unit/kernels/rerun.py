"""A test file run again unjitted, or with bounds checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MODES = ["NUMBA_DISABLE_JIT", "NUMBA_BOUNDSCHECK"]
IS_RERUN = "DISTGNN_KERNEL_RERUN" in os.environ


def rerun(file: str, mode: str, cache: Path) -> None:
    """Run a test file anew (its large tests skip themselves); bounds-checked code keeps to a cache of its own."""
    environment = os.environ | {mode: "1", "NUMBA_CACHE_DIR": str(cache), "DISTGNN_KERNEL_RERUN": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
