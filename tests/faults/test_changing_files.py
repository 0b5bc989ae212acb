"""A file of the dataset that changes while workers map it, memory that is refused, and checkpoints that are damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distgnn.training.checkpoint import list_checkpoints
from tests.faults.harness import Outcome, curve_difference, damaged_checkpoints, in_short
from tests.faults.small_runs import (
    EVERY,
    SmallRuns,
    checkpoint_steps,
    end_in_words,
    end_well,
    goes_on,
    in_worker,
    own_dataset,
    runs,
    small_data,
    undisturbed,
)

__all__ = ["own_dataset", "runs", "small_data", "undisturbed"]
Note = Callable[[Outcome], None]
INDICES = "partitions/metis-2/fit/part-0000/indices.npy"
STEP = EVERY + 2  # after the first checkpoint


@pytest.mark.parametrize(
    ("workers", "what"),
    [
        pytest.param("2", "cut", marks=pytest.mark.slow),
        pytest.param("1", "cut", marks=pytest.mark.slow),
        pytest.param("2", "alter", marks=pytest.mark.slow),
        pytest.param("1", "alter", marks=pytest.mark.slow),
        pytest.param("2", "remove", marks=pytest.mark.slow),
    ],
)
def test_a_mapped_file_that_changes_ends_the_run_and_no_checkpoint_is_made_of_it(
    runs: SmallRuns, undisturbed: Path, own_dataset: Path, note: Note, workers: str, what: str
) -> None:
    file = own_dataset / INDICES
    sound = file.read_bytes()
    run = runs.train(**in_worker(int(workers) - 1, STEP, f"{what} {file}"), cluster__workers=workers)
    words = {
        "cut": (f"{INDICES}: has 0 bytes instead of {len(sound)}", "SIGBUS"),
        "alter": (f"{INDICES}: altered while it was in use",),
        "remove": (f"{INDICES}: has gone while it was in use",),
    }[what]
    line = end_in_words(run, 1 if what == "cut" else 2, *words, "--resume")
    assert checkpoint_steps(runs.run) == [EVERY]
    note(Outcome(f"partition file: {what}, {workers} workers", "step", STEP, in_short(line), run.seconds))
    file.write_bytes(sound)
    if workers == "2":
        goes_on(runs, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_memory_that_runs_out_names_worker_and_step(runs: SmallRuns, note: Note, workers: str) -> None:
    """Rows are so wide that every step asks the system for memory; smaller ones are served from what was freed."""
    wide = {"model__dim": "65536", "model__encoder": "lightgcn", "cluster__workers": workers}
    run = runs.train(**in_worker(int(workers) - 1, STEP, "memory 0"), **wide)
    words = (f"worker {int(workers) - 1} in stage ", ", fit step ", ": out of memory: ", "lower model.dim")
    line = end_in_words(run, 2, *words)
    assert checkpoint_steps(runs.run) == [EVERY]
    assert damaged_checkpoints(runs.run) == []
    note(Outcome(f"memory limit, {workers} workers", "step", STEP, in_short(line), run.seconds))


def _spoil(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.slow
def test_damaged_checkpoints_are_passed_over_and_all_damaged_are_refused(
    runs: SmallRuns, undisturbed: Path, note: Note
) -> None:
    end_well(runs.train())
    for how in ("missing", "truncated", "altered"):
        newest = list_checkpoints(str(runs.run))[-1]
        _spoil(Path(newest.uri) / "shard-0001.safetensors", how)
        again = runs.train("--resume")
        said = end_well(again)
        what = "missing" if how == "missing" else "altered or truncated"
        assert f"{newest.name}/shard-0001.safetensors: {what}" in said
        assert f"step-{2 * EVERY:08d}-fit is taken instead" in said
        assert curve_difference(runs.run, undisturbed) == ""
        note(Outcome(f"checkpoint shard {how}", "resume", newest.step, "the one before; same curve", again.seconds))
    for info in list_checkpoints(str(runs.run)):
        _spoil(Path(info.uri) / "shard-0001.safetensors", "truncated")
    last = runs.train("--resume")
    line = end_in_words(last, 2, "none of its checkpoints is intact", "restore the files")
    note(Outcome("all checkpoints truncated", "resume", None, in_short(line), last.seconds))
