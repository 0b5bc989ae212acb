"""Entry of a worker process: `python -m distgnn.training.worker FOLDER RANK` (the folder: see `supervision`)."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from distgnn import beat
from distgnn.config_reading import config_from_dict
from distgnn.errors import system_refusal
from distgnn.partition.dataset import PreparedDataset
from distgnn.training.launch import run_rank
from distgnn.training.supervision import (
    GRACE_SECONDS,
    beat_file,
    end_with,
    message_file,
    report_file,
    task_file,
    traceback_file,
)
from distgnn.types import UserError


def main(folder: Path, rank: int) -> int:
    """Run one rank; rank 0 leaves the report, a user's mistake is left as a message."""
    task = json.loads(task_file(folder).read_text(encoding="utf-8"))
    end_with(task["supervisor"])
    beat.share(str(beat_file(folder, rank)))
    try:
        report = run_rank(
            task["job"],
            config_from_dict(task["config"]),
            task["run"],
            PreparedDataset.open(task["dataset"], verify=False),
            rank,
            task["workers"],
            f"file://{folder}/store",
            task["threads"],
        )
        if rank == 0:
            _leave(report_file(folder), json.dumps(report))
    except Exception as error:
        mistake = error if isinstance(error, UserError) else system_refusal(error, f"worker {rank}")
        if mistake is not None:
            _leave(message_file(folder, rank), str(mistake))
            time.sleep(GRACE_SECONDS)  # connected, so that the others meet no broken connection until all are ended
            return 2
        # The supervisor shows it, unless it comes of another worker's end.
        _leave(traceback_file(folder, rank), traceback.format_exc())
        return 1
    beat.at(beat.END)
    return 0


def _leave(path: Path, text: str) -> None:
    """Write it in one step: who sees the file may read it."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def end() -> NoReturn:
    """Run one rank and end the process with its status, at once.

    The interpreter is not taken down: a thread of a communicator that wants its lock meanwhile aborts the process (see
    `WorkerGroup.leave`). After a failure threads may even be within collectives, and to wait for them is to wait for
    the other workers.
    """
    try:
        status = main(Path(sys.argv[1]), int(sys.argv[2]))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    end()
