"""What the jobs have in common: the installed distgnn, its command line, and the workers of the cluster."""

from __future__ import annotations

import sys
from typing import NoReturn

_WITH_WORKERS = ("train", "evaluate", "distill")


def run(command: str) -> NoReturn:
    """Be a command of distgnn, with the job's options."""
    on_ray(command, *sys.argv[1:])
    sys.exit(0)


def on_ray(command: str, *options: str) -> None:
    """Run a command of distgnn on the cluster; its failure ends the job."""
    try:
        from distgnn.cli import main
    except ImportError as error:
        print(f"distgnn is not installed in the cluster's Python ({error}): pip install it", file=sys.stderr)
        sys.exit(2)
    workers = ("--set", "cluster.ray=true") if command in _WITH_WORKERS else ()
    status = main([command, *workers, *options])
    if status:
        sys.exit(status)
