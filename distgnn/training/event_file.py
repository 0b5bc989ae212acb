"""TensorBoard's event files, written record by record: a disk that fills up is an error here, not in a thread."""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from distgnn import storage


class EventFile:
    """One event file in a folder.

    Raises:
        UserError: no space left, or no permission.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        with storage.writing(str(self._path)):
            folder.mkdir(parents=True, exist_ok=True)
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, figures: dict[str, float], step: int) -> None:
        """Figures by tag, at a step."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _append(self, event: Event) -> None:
        buffer = io.BytesIO()
        RecordWriter(buffer).write(event.SerializeToString())
        with storage.writing(str(self._path)), open(self._path, "ab") as file:
            file.write(buffer.getvalue())
