"""Whether two runs are one: options, dataset, drawn blocks, losses and metrics, in the order in which they follow.

A difference shows in everything that comes after it, so that the first one is what to look into.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from distgnn import storage
from distgnn.config import Config
from distgnn.config_reading import load_config
from distgnn.training.recorder import read_records
from distgnn.types import UserError

METRIC_TOLERANCE = 1e-3
# What the result does not depend on. The data themselves are compared by hash.
_FREE_SECTIONS = ("data", "partition", "baselines", "cluster", "recommend")
_FREE_OPTIONS = (
    "run.out",
    "run.path",
    "run.dump_blocks",
    "run.resume",
    "run.tensorboard",
    "sampler.topology",
    "sampler.threads",
    "sampler.prefetch",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "evaluate.memory_gib",
    "evaluate.baselines",
)
_TOLD = ("cluster.workers", "partition.parts", "partition.method", "sampler.topology", "sampler.threads")
_MOST_LISTED = 4


@dataclass(frozen=True)
class Finding:
    """One thing that was compared.

    Attributes:
        what: options, dataset, blocks, losses or metrics. same: None where one of the runs does not have it.
        text: how far it is the same, or where it first differs.
    """

    what: str
    same: bool | None
    text: str


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Attributes:
        runs: their URIs. findings: in the order in which a difference spreads.
    """

    runs: tuple[str, str]
    findings: tuple[Finding, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return all(finding.same is not False for finding in self.findings)

    @property
    def verdict(self) -> str:
        """In one line."""
        first = next((finding for finding in self.findings if finding.same is False), None)
        return f"different, first in {first.what}: {first.text}" if first else "the same run"

    def table(self) -> str:
        """For reading."""
        words = {True: "same", False: "DIFFERENT", None: "-"}
        lines = [f"A = {self.runs[0]}", f"B = {self.runs[1]}"]
        lines += [f"{f.what:<9}{words[f.same]:<11}{f.text}" for f in self.findings]
        return "\n".join([*lines, self.verdict])


def compare_runs(
    a: str, b: str, loss_tolerance: float | None = None, metric_tolerance: float = METRIC_TOLERANCE
) -> Comparison:
    """Compare two run directories (any fsspec URI).

    Args:
        loss_tolerance: largest relative difference; None: `default_tolerance`.
        metric_tolerance: largest difference of a metric.

    Raises:
        UserError: no run there, damaged files, or nothing that both runs have.
    """
    for name, value in (("loss", loss_tolerance), ("metric", metric_tolerance)):
        if value is not None and not value >= 0:
            raise UserError(f"--{name}-tolerance {value}: must be at least 0")
    configs = _config(a), _config(b)
    double = all(config.run.dtype == "float64" for config in configs)
    findings = (
        _compare_options(*configs),
        _compare_datasets(a, b),
        _compare_blocks(a, b),
        _compare_losses(a, b, loss_tolerance, double),
        _compare_metrics(a, b, metric_tolerance),
    )
    if all(finding.same is None for finding in findings[2:]):
        raise UserError(f"{a} and {b} have nothing to compare: no losses, no metrics and no blocks that both have")
    return Comparison((a, b), findings)


def default_tolerance(step: int, double: bool) -> float:
    """Largest relative difference of a loss at a step, from 1, between runs on different numbers of workers.

    Rounding grows with the steps in float32; after 200 of them the metrics are the better measure.
    """
    if double:
        return 1e-9
    return 1e-6 if step <= 60 else 1e-5 if step <= 200 else 1e-3


def _config(run: str) -> Config:
    uri = storage.join(run, "config.toml")
    if not storage.exists(uri):
        raise UserError(f"{run}: no config.toml there; name the directory of a training run")
    return load_config(storage.local_copy(uri))


def _compare_options(a: Config, b: Config) -> Finding:
    differing = {}
    of_b = b.to_dict()
    for section, values in a.to_dict().items():
        for key, value in values.items():
            if value != of_b[section][key]:
                differing[f"{section}.{key}"] = f"{section}.{key} ({value!r} | {of_b[section][key]!r})"
    bound = [
        text for key, text in differing.items() if key.split(".")[0] not in _FREE_SECTIONS and key not in _FREE_OPTIONS
    ]
    if bound:
        return Finding("options", False, _listed(bound))
    free = [text for key, text in differing.items() if key in _TOLD]
    return Finding("options", True, f"apart from {_listed(free)}" if free else "")


def _listed(texts: list[str]) -> str:
    more = len(texts) - _MOST_LISTED
    return ", ".join(texts[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _compare_datasets(a: str, b: str) -> Finding:
    known = [storage.read_json(storage.join(run, "dataset.json")) for run in (a, b)]
    names, hashes = [str(k.get("name")) for k in known], [str(k.get("dataset_hash")) for k in known]
    if hashes[0] == hashes[1]:
        return Finding("dataset", True, f"{names[0]}, {hashes[0][:12]}")
    return Finding("dataset", False, f"{names[0]}, {hashes[0][:12]} | {names[1]}, {hashes[1][:12]}")


def _dumps(run: str) -> dict[tuple[str, str], str]:
    """(phase, file name) to URI, in the order of the run."""
    return {
        (phase, name): storage.join(run, "blocks", phase, name)
        for phase in ("fit", "full")
        for name in storage.names_in(storage.join(run, "blocks", phase))
        if name.endswith(".npz")
    }


def _compare_blocks(a: str, b: str) -> Finding:
    of_a, of_b = _dumps(a), _dumps(b)
    if not of_a or not of_b:
        return Finding("blocks", None, f"{_lacking(not of_a, not of_b)} none (run.dump_blocks)")
    for place in sorted(of_a.keys() | of_b.keys()):
        where = f"blocks/{place[0]}/{place[1]}"
        if place not in of_a or place not in of_b:
            return Finding("blocks", False, f"{where} is in {'A' if place in of_a else 'B'} alone")
        contents = storage.read_bytes(of_a[place]), storage.read_bytes(of_b[place])
        if contents[0] != contents[1]:
            return Finding("blocks", False, f"{where}: {_first_array(*contents)}")
    return Finding("blocks", True, f"{len(of_a)} steps, to the byte")


def _lacking(a: bool, b: bool) -> str:
    return "A and B have" if a and b else f"{'A' if a else 'B'} has"


def _first_array(a: bytes, b: bytes) -> str:
    """Which array of a dumped step differs first, and in how many rows."""
    try:
        with np.load(io.BytesIO(a)) as of_a, np.load(io.BytesIO(b)) as of_b:
            for name in sorted(
                {*of_a, *of_b}, key=lambda n: (["seeds", "negatives"].index(n) if n[:3] != "hop" else 2, n)
            ):
                if name not in of_a or name not in of_b:
                    return f"{name} is in {'A' if name in of_a else 'B'} alone"
                rows = [set(map(tuple, arrays[name].tolist())) for arrays in (of_a, of_b)]
                if rows[0] != rows[1]:
                    return f"{name}: {len(rows[0] - rows[1])} rows in A alone, {len(rows[1] - rows[0])} in B alone"
    except (ValueError, OSError, KeyError) as error:
        return f"damaged ({error})"
    return "equal arrays in other bytes"


def _losses(run: str) -> dict[str, dict[int, float]]:
    """Phase to step to the mean loss since the step of the record before."""
    found: dict[str, dict[int, float]] = {"fit": {}, "full": {}}
    for record in read_records(run):
        if "loss" in record:
            found[record["phase"]][record["step"]] = record["loss"]
    return {phase: losses for phase, losses in found.items() if losses}


def _common_windows(a: dict[int, float], b: dict[int, float]) -> Iterator[tuple[int, float, float]]:
    """Last step and mean losses of the windows between steps that both runs have a record of."""
    start = 0
    for end in sorted(a.keys() & b.keys()):
        means = []
        for losses in (a, b):
            steps = [start, *sorted(step for step in losses if start < step <= end)]
            parts = [losses[step] * (step - before) for before, step in zip(steps, steps[1:], strict=False)]
            means.append(math.fsum(parts) / (end - start))
        yield end, means[0], means[1]
        start = end


def _compare_losses(a: str, b: str, tolerance: float | None, double: bool) -> Finding:
    of_a, of_b = _losses(a), _losses(b)
    if not of_a or not of_b:
        return Finding("losses", None, f"{_lacking(not of_a, not of_b)} none (metrics.jsonl)")
    count, worst, where, allowed = 0, -1.0, "", 0.0
    for phase in ("fit", "full"):
        for step, x, y in _common_windows(of_a.get(phase, {}), of_b.get(phase, {})):
            largest = default_tolerance(step, double) if tolerance is None else tolerance
            apart = abs(x - y) / max(abs(x), abs(y)) if x != y else 0.0
            if not apart <= largest:  # also where one is not a number
                return Finding(
                    "losses",
                    False,
                    f"{phase} step {step}: {x:.10g} | {y:.10g}, {apart:.1e} apart (tolerance {largest:g})",
                )
            count += 1
            if apart > worst:
                worst, where, allowed = apart, f"{phase} step {step}", largest
        ends = [max(losses.get(phase, {}), default=0) for losses in (of_a, of_b)]
        if ends[0] != ends[1]:
            return Finding("losses", False, f"{phase} ends at step {ends[0]} | {ends[1]}, alike so far")
    return Finding("losses", True, f"{count} records, at most {worst:.1e} apart ({where}; tolerance {allowed:g})")


def _metrics(run: str) -> dict[str, Any]:
    uri = storage.join(run, "report.json")
    if not storage.exists(uri):
        return {}
    return {key: value for key, value in storage.read_json(uri)["metrics"].items() if isinstance(value, (int, float))}


def _compare_metrics(a: str, b: str, tolerance: float) -> Finding:
    of_a, of_b = _metrics(a), _metrics(b)
    if not of_a or not of_b:
        return Finding("metrics", None, f"{_lacking(not of_a, not of_b)} none (report.json)")
    if of_a.keys() != of_b.keys():
        alone = sorted(of_a.keys() ^ of_b.keys())
        return Finding("metrics", False, f"only one has {_listed(alone)}")
    key = max(of_a, key=lambda k: abs(of_a[k] - of_b[k]))
    apart = abs(of_a[key] - of_b[key])
    figures = f"{key} {of_a[key]:.6g} | {of_b[key]:.6g}"
    if not apart <= tolerance:
        return Finding("metrics", False, f"{figures}, {apart:.1e} apart (tolerance {tolerance:g})")
    return Finding("metrics", True, f"at most {apart:.1e} apart ({figures}; tolerance {tolerance:g})")
