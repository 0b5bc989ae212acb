"""Entry of a worker process: `python -m distgnn.training.worker TASK.json RANK`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from distgnn.config import config_from_dict
from distgnn.errors import system_refusal
from distgnn.partition.dataset import PreparedDataset
from distgnn.training.launch import GRACE_SECONDS, run_rank
from distgnn.types import UserError


def main() -> int:
    """Run one rank; rank 0 leaves the report, a user's mistake is left as a message."""
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rank = int(sys.argv[2])
    try:
        report = run_rank(
            task["job"],
            config_from_dict(task["config"]),
            task["run"],
            PreparedDataset.open(task["dataset"], verify=False),
            rank,
            task["workers"],
            task["init_method"],
            task["threads"],
        )
        if rank == 0:
            Path(task["report"]).write_text(json.dumps(report), encoding="utf-8")
    except Exception as error:
        mistake = error if isinstance(error, UserError) else system_refusal(error, f"worker {rank}")
        if mistake is None:
            raise
        _leave_message(Path(f"{task['error']}-{rank}"), str(mistake))
        time.sleep(GRACE_SECONDS)  # connected, so that the others meet no broken connection until all are ended
        return 2
    return 0


def _leave_message(path: Path, message: str) -> None:
    """Write it in one step: who sees the file may read it."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(message, encoding="utf-8")
    os.replace(unfinished, path)


def end() -> NoReturn:
    """Run one rank and end the process with its status, at once.

    The interpreter is not taken down: a thread of a communicator that wants its lock meanwhile aborts the process (see
    `WorkerGroup.leave`). After a failure threads may even be within collectives, and to wait for them is to wait for
    the other workers.
    """
    try:
        status = main()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    end()
