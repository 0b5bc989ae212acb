"""What the jobs have in common: the installed distgnn, and its command line."""

from __future__ import annotations

import sys
from typing import NoReturn


def run(command: str, *defaults: str) -> NoReturn:
    """Run a command of distgnn with the job's own options after the defaults."""
    try:
        from distgnn.cli import main
    except ImportError as error:
        print(
            f"distgnn is not installed in this cluster's Python ({error}): pip install it on all nodes", file=sys.stderr
        )
        sys.exit(2)
    sys.exit(main([command, *defaults, *sys.argv[1:]]))
