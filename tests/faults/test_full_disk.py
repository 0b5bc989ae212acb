"""A disk that is full at any write: one line with what is wanted and free, nothing half-written, and then it goes on.

The disk is full for writes to chosen files, through `faults.c`, which stands between a process and the C library:
Python's, numpy's and Arrow's writes, and the reservation of space, meet it alike.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from distgnn.partition.dataset import PreparedDataset
from tests.faults.harness import Outcome, in_short
from tests.faults.small_runs import (
    EVERY,
    SmallRuns,
    checkpoint_steps,
    end_in_words,
    end_well,
    goes_on,
    hidden,
    library,
    preloaded,
    runs,
    small_data,
    undisturbed,
)

__all__ = ["library", "runs", "small_data", "undisturbed"]
Note = Callable[[Outcome], None]


# What is written, after how many bytes of it the disk is full, and the checkpoints that are whole by then.
WRITES = {
    "config": ("run/.config.toml", "0", 0),
    "records, first": ("run/metrics.jsonl", "0", 0),
    "records, later": ("run/metrics.jsonl", "1700", 1),
    "shard, first checkpoint": (f"step-{EVERY:08d}-fit/.shard-0001", "100", 0),
    "shard, second checkpoint": (f"step-{2 * EVERY:08d}-fit/.shard-0001", "100", 1),
    "manifest": (f"step-{2 * EVERY:08d}-fit/.manifest", "0", 1),
    "dense state": (f"step-{2 * EVERY:08d}-fit/.dense", "700", 1),
    "export": ("run/.embeddings", "2000", 3),
    "report": ("run/.report.json", "0", 3),
    "report's page": ("run/.report.html", "4096", 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", list(WRITES))
def test_a_run_stops_in_words_and_goes_on_once_there_is_room(
    runs: SmallRuns, undisturbed: Path, library: Path, note: Note, what: str
) -> None:
    file, nbytes, whole = WRITES[what]
    run = runs.train(environment=preloaded(library, file=file, bytes=nbytes))
    shown = file.replace("/.", "/").rpartition("/")[2]
    line = end_in_words(run, 2, shown, "No space left on device", "free); free some space or write elsewhere")
    assert hidden(runs.work) == []
    assert checkpoint_steps(runs.run) == [EVERY * (i + 1) for i in range(whole)]
    assert runs.run.exists() == (whole > 0)
    note(Outcome(f"disk full: {what}", "writing", whole * EVERY, in_short(line), run.seconds))
    goes_on(runs, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["dataset/edges", "edges/train", "users.parquet", "indices.npy", "manifest.json"])
def test_no_half_dataset_is_published(runs: SmallRuns, library: Path, note: Note, what: str) -> None:
    out = runs.work / "dataset"
    words = ("--input", str(runs.log), "--parts", "2", "--out", str(out))
    file = {"dataset/edges": ".dataset.partial"}.get(what, what)
    run = runs.start("prepare", *words, environment=preloaded(library, file=file, bytes="64"))
    line = end_in_words(run, 2, "dataset", "No space left on device", "free); free some space or write elsewhere")
    assert not out.exists()
    assert hidden(runs.work) == []
    note(Outcome(f"disk full: {what}", "prepare", None, in_short(line), run.seconds))
    end_well(runs.start("prepare", *words))
    PreparedDataset.open(str(out))


@pytest.mark.slow
def test_a_timeline_that_finds_no_room_is_lost_and_the_run_is_not(
    runs: SmallRuns, undisturbed: Path, library: Path, note: Note
) -> None:
    trace = runs.work / "trace.json"
    run = runs.train("--trace", str(trace), environment=preloaded(library, file=".trace.json.partial", bytes="9000"))
    (line,) = [line for line in end_well(run).splitlines() if "the timeline is lost" in line]
    assert "No space left on device" in line
    assert not trace.exists()
    assert hidden(runs.work) == []
    note(Outcome("disk full: timeline", "writing", None, in_short(line), run.seconds))


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(runs: SmallRuns, note: Note) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))  # children keep it
    try:
        # Memory that workers share is a file to this limit, too.
        run = runs.train(model__dim="512", cluster__exchange="messages")
        line = end_in_words(run, 2, "shard-000", "File too large", "wanted); raise the limit on the size of a file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not runs.run.exists()
    note(Outcome("limit on file sizes", "checkpoint", EVERY, in_short(line), run.seconds))
