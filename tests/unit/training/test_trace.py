from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from distgnn.distributed.process_group import WorkerGroup
from distgnn.timeline import BACKWARD, FETCH, ROWS, SAMPLING
from distgnn.training.recorder import Recorder
from distgnn.training.trace import Trace, check_trace_target, clock_difference
from distgnn.types import UserError


def alone() -> WorkerGroup:
    return WorkerGroup(0, 1, torch.device("cpu"), None, None, None)


def recorder(folder: Path) -> Recorder:
    return Recorder(str(folder / "run"), tensorboard=False, active=True)


def test_the_file_is_what_a_viewer_reads(tmp_path: Path) -> None:
    group = alone()
    trace = Trace(str(tmp_path / "deep" / "trace.json"), group)
    assert group.watch.timeline is trace.timeline
    zero = -trace.offset
    trace.timeline.phase = "fit"
    trace.timeline.add(ROWS, zero + 1.25, zero + 1.5, 4)
    trace.timeline.add(FETCH, zero + 1.0, zero + 2.0, 4)
    trace.write(recorder(tmp_path))
    assert group.watch.timeline is None
    content = json.loads((tmp_path / "deep" / "trace.json").read_text())
    labels = [(e["name"], e["pid"], e["args"]) for e in content["traceEvents"] if e["ph"] == "M"]
    assert ("process_name", 0, {"name": "worker 0"}) in labels
    assert ("thread_name", 0, {"name": "trainer"}) in labels
    events = [e for e in content["traceEvents"] if e["ph"] == "X"]
    assert [(e["name"], e["cat"], e["pid"], e["tid"], e["args"]) for e in events] == [
        (ROWS, "fit", 0, 0, {"step": 4}),
        (FETCH, "fit", 0, 0, {"step": 4}),
    ]
    assert [e["ts"] for e in events] == pytest.approx([1.25e6, 1e6], abs=0.01)
    assert [e["dur"] for e in events] == pytest.approx([0.25e6, 1e6], abs=0.01)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["trace.json"]


def test_more_events_than_are_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distgnn.training.trace._CHUNK", 3)
    trace = Trace(str(tmp_path / "trace.json"), alone())
    for step in range(7):
        trace.timeline.add(BACKWARD, 10.0 + step, 10.5 + step, step)
    trace.write(recorder(tmp_path))
    content = json.loads((tmp_path / "trace.json").read_text())
    assert [e["args"]["step"] for e in content["traceEvents"] if e["ph"] == "X"] == list(range(7))


def test_a_remote_file(tmp_path: Path) -> None:
    trace = Trace("memory://traces/trace.json", alone())
    trace.timeline.add(SAMPLING, 1.0, 2.0, 0)
    trace.write(recorder(tmp_path))
    assert json.loads(fsspec.filesystem("memory").cat_file("/traces/trace.json"))["traceEvents"]


def test_a_file_that_cannot_be_written_in_the_end_costs_a_line_and_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    trace = Trace(str(tmp_path / "file" / "trace.json"), alone())
    trace.timeline.add(SAMPLING, 1.0, 2.0, 0)
    trace.write(recorder(tmp_path))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("run.trace: the timeline is lost: ")


def test_a_run_that_ends_while_it_writes_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace(str(tmp_path / "traces" / "trace.json"), alone())
    trace.timeline.add(SAMPLING, 1.0, 2.0, 0)
    chunks = trace._chunks

    def broken() -> Iterator[list[np.ndarray]]:
        yield from chunks()
        raise RuntimeError("a worker is gone")

    monkeypatch.setattr(trace, "_chunks", broken)
    with pytest.raises(RuntimeError, match="a worker is gone"):
        trace.write(recorder(tmp_path))
    assert [*(tmp_path / "traces").iterdir()] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("there.json", "is there already"),
        (".", "is there already"),
        ("new/", "names a folder"),
        ("run", "names a folder"),
        ("there.json/trace.json", "cannot be written: Not a directory"),
        ("/proc/trace.json", "cannot be written"),  # also root's own
        (f"{'deep' * 100}/trace.json", "cannot be written: File name too long"),
        ("nothing://x/trace.json", "cannot be opened"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "there.json").write_text("{}")
    with pytest.raises(UserError, match=f"^run.trace.*{words}") as caught:
        check_trace_target(name if "://" in name or name.startswith("/") else f"{tmp_path}/{name}", f"{tmp_path}/run/")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]


def test_a_store_that_takes_no_file_is_found_out_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    with pytest.raises(UserError, match="run.trace: memory://x/trace.json: cannot be written: Permission denied"):
        check_trace_target("memory://x/trace.json")


def test_a_good_file_is_not_there_before_the_run(tmp_path: Path) -> None:
    check_trace_target(str(tmp_path / "new" / "trace.json"), str(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []
    check_trace_target("memory://before/trace.json")
    assert not fsspec.filesystem("memory").exists("/before/trace.json")


@pytest.mark.parametrize("ahead", [0, 200, 5_000, -70_000, 10**15])
def test_clocks_of_two_machines_are_told_apart_by_barriers(ahead: int) -> None:
    """A barrier takes 1,000 ns from the last one's entering, and each enters and leaves with some delay of its own."""
    rng = np.random.default_rng(1)
    entered = np.arange(16)[:, None] * 10_000 + rng.integers(0, 300, (16, 2))
    left = entered.max(1, keepdims=True) + 1000 + rng.integers(0, 300, (16, 2))
    first, second = np.stack([entered, left], 2).swapaxes(0, 1)
    found = clock_difference(first, second + ahead)
    assert found == 0 if abs(ahead) < 1000 else abs(found - ahead) < 300
