"""What a run tells while it trains: metrics.jsonl, TensorBoard and the live progress line (rank 0 alone writes)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from distgnn import storage
from distgnn.progress import ProgressLine


class Recorder:
    """Appends records to RUN/metrics.jsonl and to TensorBoard, and shows progress.

    Args:
        run: run directory (local: appended to; remote: rewritten at every flush, object stores cannot append).
        tensorboard: write event files to RUN/tensorboard (local runs).
        active: rank 0.
        keep: records of an earlier attempt to keep.
    """

    def __init__(self, run: str, *, tensorboard: bool, active: bool, keep: list[dict[str, Any]] | None = None) -> None:
        self.uri = storage.join(run, "metrics.jsonl")
        self.active = active
        self.records: list[dict[str, Any]] = list(keep or [])
        self._local = storage.local_path(self.uri) if storage.is_local(self.uri) else None
        self._events: Any = None
        self._line = ProgressLine()
        if active:
            storage.write_bytes(self.uri, "".join(_line(r) for r in self.records).encode())
            if tensorboard and storage.is_local(run):
                from distgnn.training.event_file import EventFile

                self._events = EventFile(storage.local_path(storage.join(run, "tensorboard")))

    def add(self, record: dict[str, Any]) -> None:
        """One record: `phase`, `step`, `epoch` and figures."""
        if not self.active:
            return
        self.records.append(record)
        if self._local is not None:
            line = _line(record)
            with storage.writing(self.uri, len(line)), Path(self._local).open("a", encoding="utf-8") as file:
                file.write(line)
        else:
            storage.write_bytes(self.uri, "".join(_line(r) for r in self.records).encode())
        if self._events is not None:
            figures = {
                f"{record['phase']}/{key}": float(value)
                for key, value in record.items()
                if isinstance(value, (int, float)) and key not in ("step", "epoch")
            }
            self._events.add(figures, record["step"])

    def progress(self, text: str, *, last: bool = False) -> None:
        """Show the progress line: in place on a terminal, else every ten seconds."""
        if self.active:
            self._line.show(text, last=last)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.active:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """A line on what is amiss, said also where `say` is silent."""
        self.say(text)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def read_records(run: str) -> list[dict[str, Any]]:
    """Records of RUN/metrics.jsonl; a half-written last line is left out."""
    uri = storage.join(run, "metrics.jsonl")
    if not storage.exists(uri):
        return []
    records = []
    for line in storage.read_bytes(uri).decode("utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
