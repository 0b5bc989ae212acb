"""What a worker's threads did and when, kept as a few bytes an event."""

from __future__ import annotations

import sys
import threading
import time
from array import array

import numpy as np

MOST_EVENTS = 1_000_000

# Trainer.
COPY, FETCH, FORWARD, BACKWARD, UPDATE = "copy", "fetch", "forward", "backward", "update"
BLOCKED, RECORD = "waiting for the sampler", "record"
EVALUATION, CHECKPOINT, EXPORT = "evaluation", "checkpoint", "export"
# Collectives within the trainer's stages.
IDS, ROWS, FEATURES, GRADIENTS = "exchange of ids", "exchange of rows", "exchange of features", "exchange of gradients"
HOT, OUTPUTS, OUTPUT_GRADIENTS = "sum of hot gradients", "exchange of outputs", "exchange of outputs' gradients"
DENSE = "waiting for dense gradients"
# Sampling threads, and the communication thread that serves them.
SAMPLING, ANSWER = "sampling", "waiting for the exchange"
EXCHANGE, TURN = "exchange", "waiting for the turn"

NAMES = (
    *(COPY, FETCH, FORWARD, BACKWARD, UPDATE, BLOCKED, RECORD, EVALUATION, CHECKPOINT, EXPORT),
    *(IDS, ROWS, FEATURES, GRADIENTS, HOT, OUTPUTS, OUTPUT_GRADIENTS, DENSE),
    *(SAMPLING, ANSWER, EXCHANGE, TURN),
)
PHASES = ("", "fit", "full")
_CODE = {name: code for code, name in enumerate(NAMES)}
_PREFIX = "distgnn-"  # of the threads that have a row of their own; others work for the trainer


class Timeline:
    """Events of one worker; any thread may add some.

    Args:
        rank: of the worker. most: events to keep; the later ones are left out, which is said once.

    Attributes:
        threads: names, by the events' `thread`. step, phase: where the trainer is.
    """

    def __init__(self, rank: int, most: int = MOST_EVENTS) -> None:
        self.rank, self.most = rank, most
        self.threads = ["trainer"]
        self.step, self.phase = 0, ""
        self._times = array("d")
        self._codes = array("q")  # name, thread, phase, step
        self._thread_code: dict[str, int] = {}
        self._lock = threading.Lock()
        self._said = False

    def add(self, name: str, start: float, stop: float | None = None, step: int | None = None) -> None:
        """One event of the calling thread.

        Args:
            name: one of NAMES. start, stop: `time.perf_counter()`; stop None: now. step: None: the trainer's.
        """
        stop = time.perf_counter() if stop is None else stop
        with self._lock:
            if len(self) == self.most:
                self._say()
                return
            self._times.extend((start, stop))
            step = self.step if step is None else step
            self._codes.extend((_CODE[name], self._thread(), PHASES.index(self.phase), step))

    def __len__(self) -> int:
        return len(self._times) // 2

    def columns(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Events [start, stop) in the order of their ends on each thread, float64 `[n, 6]`.

        Columns: start and stop in seconds, then name (in NAMES), thread, phase (in PHASES) and step.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        times = np.array(self._times[2 * start : 2 * stop], np.float64).reshape(-1, 2)
        codes = np.array(self._codes[4 * start : 4 * stop], np.float64).reshape(-1, 4)
        return np.concatenate([times, codes], axis=1)

    def _thread(self) -> int:
        name = threading.current_thread().name
        code = self._thread_code.get(name)
        if code is None:
            code = 0
            if name.startswith(_PREFIX):
                code = len(self.threads)
                self.threads.append(name.removeprefix(_PREFIX).replace("_", " "))
            self._thread_code[name] = code
        return code

    def _say(self) -> None:
        if not self._said:
            self._said = True
            text = f"run.trace: worker {self.rank} has recorded {self.most:,} events; the later ones are left out"
            print(text, file=sys.stderr, flush=True)
