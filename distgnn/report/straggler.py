"""One sentence on the worker that the others wait for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STAGES = {
    "blocked": "waiting for its sampler",
    "fetch": "fetching rows",
    "forward": "the forward pass",
    "backward": "the backward pass",
    "optimizer": "the update",
}


def straggler_sentence(report: Mapping[str, Any]) -> str:
    """Who has most work of its own, how much and where; empty where the report names nobody."""
    found = report.get("straggler")
    if not found:
        return ""
    return (
        f"Worker {found['rank']} has most work of its own: {found['seconds']:,.1f} s, {found['of_mean']:.2f} times the "
        f"mean of the {report['workers']} workers; it loses most in {_STAGES[found['stage']]}."
    )
