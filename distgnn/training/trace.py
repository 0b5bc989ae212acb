"""A run's timeline of every worker, as a file in the Chrome trace format (for Perfetto and chrome://tracing).

Every worker's clock is its `perf_counter`, which the workers of one machine share. How far those of two machines are
apart is found from barriers, once, at the start: nobody leaves one before everybody has entered it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import numpy as np

from distgnn import publishing, storage
from distgnn.distributed.process_group import WorkerGroup
from distgnn.timeline import NAMES, PHASES, Timeline
from distgnn.training.recorder import Recorder
from distgnn.types import UserError

_BARRIERS = 16
_CHUNK = 1 << 16  # events of a worker that rank 0 holds at once
_EMPTY = b'{"traceEvents": []}\n'


def check_trace_target(uri: str, run: str = "") -> None:
    """Refuse a file that cannot be written, before any work.

    Args:
        uri: of the file. run: directory of the run, where it is known.

    Raises:
        UserError: there already, a folder, below a file, or refused by its store.
    """
    if uri.endswith("/") or (run and storage.from_anywhere(uri) == storage.from_anywhere(run).rstrip("/")):
        raise UserError(f"run.trace = {uri!r} names a folder: name the file to write")
    try:
        used = storage.exists(uri)
        if not used:
            storage.require_writable(uri, _EMPTY)
    except UserError as error:
        raise UserError(f"run.trace: {error}") from error
    if used:
        raise UserError(f"run.trace = {uri!r} is there already: name another file, or remove it")


class Trace:
    """Records a worker's timeline from here on; every worker makes one, a collective.

    Args:
        uri: of the file. group: whose trainer, loader and exchanges add their events.

    Attributes:
        offset: seconds to add to this worker's `perf_counter` for the time since the run's zero.
    """

    def __init__(self, uri: str, group: WorkerGroup) -> None:
        self.uri, self.group = uri, group
        # Nanoseconds before and after each barrier.
        marks = np.empty((_BARRIERS, 2), np.int64)
        for row in marks:
            row[0] = time.perf_counter_ns()
            group.barrier()
            row[1] = time.perf_counter_ns()
        zeros = np.zeros(group.size)
        everybody = group.gather_arrays(marks)
        if everybody is not None:
            ahead = np.array([clock_difference(everybody[0], own) for own in everybody])
            ends = np.array([own[-1, 1] for own in everybody])
            zeros = ((ends - ahead).min() + ahead) / 1e9
        self.offset = -group.sum_floats(zeros.tolist())[group.rank]
        self.timeline = group.watch.timeline = Timeline(group.rank)

    def write(self, recorder: Recorder) -> None:
        """End recording and write the file (rank 0); a collective. What cannot be written is said, and no failure."""
        self.group.watch.timeline = None
        names = np.array([*"\n".join(self.timeline.threads).encode()], np.uint8)
        threads = self.group.gather_arrays(names)
        chunks = self._chunks()
        if threads is not None:
            try:
                with publishing.replace_file(self.uri) as path, path.open("w", encoding="utf-8") as file:
                    _write(file, [part.tobytes().decode().split("\n") for part in threads], chunks)
            except (UserError, OSError) as error:
                recorder.warn(f"run.trace: the timeline is lost: {error}")
            else:
                recorder.say(f"timeline: {self.uri}")
        for _ in chunks:
            pass  # where rank 0 has given up, the others still send all of theirs

    def _chunks(self) -> Iterator[list[np.ndarray]]:
        """Events of every worker at rank 0, nothing elsewhere, some at a time; each is a collective."""
        most = int(self.group.max_floats([float(len(self.timeline))])[0])
        for start in range(0, most, _CHUNK):
            events = self.timeline.columns(start, start + _CHUNK)
            events[:, :2] += self.offset
            yield self.group.gather_arrays(events) or []


def clock_difference(reference: np.ndarray, other: np.ndarray) -> int:
    """Nanoseconds that another worker's clock is ahead; 0, as on one machine, where the barriers do not exclude that.

    Args:
        reference, other: two workers' clocks before and after each barrier, nanoseconds, int64 `[n, 2]`.
    """
    least, most = int((other[:, 0] - reference[:, 1]).max()), int((other[:, 1] - reference[:, 0]).min())
    return 0 if least <= 0 <= most else (least + most) // 2


def _write(file: TextIO, threads: list[list[str]], chunks: Iterable[list[np.ndarray]]) -> None:
    """The whole file.

    Args:
        threads: names by worker and number. chunks: events of each worker, as `Timeline.columns`, on one clock.
    """
    file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
    file.write(",\n".join(json.dumps(entry) for entry in _labels(threads)))
    for parts in chunks:
        for rank, events in enumerate(parts):
            for start, stop, *codes in events.tolist():
                file.write(",\n" + _event(rank, start, stop, *map(int, codes)))
    file.write("\n]}\n")


def _labels(threads: list[list[str]]) -> Iterator[dict[str, Any]]:
    """What the viewer calls processes and threads, and their order."""
    for rank, names in enumerate(threads):
        yield {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": f"worker {rank}"}}
        yield {"ph": "M", "name": "process_sort_index", "pid": rank, "tid": 0, "args": {"sort_index": rank}}
        for thread, name in enumerate(names):
            yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": thread, "args": {"name": name}}


def _event(rank: int, start: float, stop: float, name: int, thread: int, phase: int, step: int) -> str:
    ts = round(start * 1e6, 3)
    return (
        f'{{"ph": "X", "name": "{NAMES[name]}", "cat": "{PHASES[phase]}", "pid": {rank}, "tid": {thread}, '
        f'"ts": {ts:.3f}, "dur": {round(stop * 1e6, 3) - ts:.3f}, "args": {{"step": {step}}}}}'
    )
