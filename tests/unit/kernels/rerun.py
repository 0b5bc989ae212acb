"""A test file run again unjitted, or with bounds checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Bounds-checked kernels are compiled anew for every file.
MODES = ["NUMBA_DISABLE_JIT", pytest.param("NUMBA_BOUNDSCHECK", marks=pytest.mark.slow)]
IS_RERUN = "DISTGNN_KERNEL_RERUN" in os.environ


def rerun(file: str, mode: str, cache: Path) -> None:
    """Run a test file anew (its large tests skip themselves); bounds-checked code keeps to a cache of its own."""
    environment = os.environ | {mode: "1", "NUMBA_CACHE_DIR": str(cache), "DISTGNN_KERNEL_RERUN": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
