"""report.json and report.html of a run directory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distgnn import storage
from distgnn.report.page import render_html

REQUIRED_KEYS = (
    "dataset",
    "config",
    "seed",
    "workers",
    "partitions",
    "metrics",
    "seconds",
    "peak_rss_bytes",
    "remote_bytes",
    "positives_per_second",
    "sampled_edges_per_second",
)


def write_report(run_dir: str, report: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Write report.json and report.html into a run directory (any fsspec URI), each atomically.

    Args:
        run_dir: existing run directory.
        report: at least REQUIRED_KEYS; "baselines" (rows of `run_baselines`) and anything else is kept. Numbers that
            are not finite become null.
        records: lines of metrics.jsonl.

    Raises:
        ValueError: a required key is missing.
    """
    missing = [key for key in REQUIRED_KEYS if key not in report]
    if missing:
        raise ValueError(f"report: missing {', '.join(missing)}")
    content = _plain(report)
    page = render_html(content, [_plain(record) for record in records])
    storage.write_json(storage.join(run_dir, "report.json"), content)
    storage.write_bytes(storage.join(run_dir, "report.html"), page.encode("utf-8"))


def _plain(value: Any) -> Any:
    """JSON types only; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
