"""Sentences on what a run's workers waited for: their samplers, and one worker that is slower than the others."""

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


def blocked_sentence(report: Mapping[str, Any]) -> str:
    """How long the trainer was blocked by its sampler; empty where the report is not of training."""
    seconds = report["seconds"]
    if not seconds.get("training") or "blocked_share" not in report:
        return ""
    who, most = ("trainer", "") if report["workers"] == 1 else ("trainer of a worker", "at most ")
    share = f"{report['blocked_share']:.0%} of its time"
    return f"The {who} was blocked by its sampler for {most}{seconds['blocked']:,.1f} s, {share}."


def straggler_sentence(report: Mapping[str, Any]) -> str:
    """Who has more work of its own than the others, how much and where; empty where no workers can be compared."""
    if report["workers"] == 1 or not report["seconds"].get("training") or "straggler" not in report:
        return ""
    found = report["straggler"]
    if not found:
        return "No straggler: no worker has significantly more work of its own than the others."
    return (
        f"Worker {found['rank']} is the straggler: {found['seconds']:,.1f} s of work of its own against "
        f"{found['others_seconds']:,.1f} s, the mean of the others; it loses most in {_STAGES[found['stage']]}, "
        f"{found['stage_lost_seconds']:,.1f} s."
    )
