"""Where this process's threads are, in a record that a supervisor reads even while the process is stopped, or dead.

A process is a worker. Every thread writes into a slot of its own: its stage, its step, and how many collectives it has
entered and left. All workers enter the same ones in the same order, so that who has entered fewer is behind.
"""

from __future__ import annotations

import itertools
import mmap
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distgnn.timeline import BLOCKED, EXCHANGE, NAMES, PHASES, SAMPLING

START, END = "start", "end"
STAGES = (START, *NAMES, END)  # of a new record: the first
APART = (START, END)  # from any step
TRAINER, COMMUNICATION, _FIRST_SAMPLER, _SLOTS = 0, 1, 2, 16
_WORDS = 8  # of a slot, int64: a cache line
_CHANGES, _STAGE, _PHASE, _STEP, _ENTERED, _LEFT, _FAILED = range(7)
SIZE = _SLOTS * _WORDS * 8  # bytes
_CODE = {name: code for code, name in enumerate(STAGES)}

_words = memoryview(bytearray(SIZE)).cast("q")
_own = threading.local()
_samplers = itertools.count()
_communication = threading.Lock()


@dataclass(frozen=True)
class Place:
    """Where a thread is.

    Attributes:
        changes: of its slot so far; 0: it has written nothing. stage: one of STAGES. phase: one of PHASES.
        step: that it is in, counted from 0. entered, left: collectives. failed: one of them has.
    """

    changes: int
    stage: str
    phase: str
    step: int
    entered: int
    left: int
    failed: bool

    @property
    def waits(self) -> bool:
        """Whether it is in a collective."""
        return self.entered > self.left

    def in_words(self) -> str:
        """The stage and, where it has one, the step."""
        step = f", {self.phase or 'distillation'} step {self.step + 1}" if self.stage not in APART else ""
        return f"in stage {self.stage}{step}"


def share(path: str) -> None:
    """Keep the record in a file of SIZE bytes from here on; the calling thread is the trainer, and starts."""
    global _words
    with open(path, "r+b") as file:
        _words = memoryview(mmap.mmap(file.fileno(), SIZE)).cast("q")
    claim(TRAINER)
    at(START)


def claim(slot: int) -> None:
    """The calling thread writes into the slot of TRAINER or COMMUNICATION; one that claims none is a sampler."""
    _own.base = slot * _WORDS


def _base() -> int:
    base: int | None = getattr(_own, "base", None)
    if base is None:
        main = threading.current_thread() is threading.main_thread()
        slot = TRAINER if main else _FIRST_SAMPLER + next(_samplers) % (_SLOTS - _FIRST_SAMPLER)
        base = _own.base = slot * _WORDS
    return base


def at(stage: str, step: int | None = None, phase: str | None = None) -> None:
    """The calling thread begins a stage.

    Args:
        step: None: the one that it is in. phase: None: the trainer's.
    """
    words, base = _words, _base()
    words[base + _STAGE] = _CODE[stage]
    words[base + _PHASE] = words[_PHASE] if phase is None else PHASES.index(phase)
    if step is not None:
        words[base + _STEP] = step
    words[base] += 1


def tick() -> None:
    """The calling thread gets on with a long stage."""
    _words[_base()] += 1


@contextmanager
def within(stage: str, step: int | None = None) -> Iterator[None]:
    """A stage within another. After an error the thread stays where it failed."""
    words, base = _words, _base()
    before = words[base + _STAGE], words[base + _STEP]
    at(stage, step)
    yield
    words[base + _STAGE], words[base + _STEP] = before
    words[base] += 1


@contextmanager
def waiting() -> Iterator[None]:
    """A collective of the calling thread."""
    entered()
    try:
        yield
    except BaseException:
        _words[_base() + _FAILED] = 1
        raise
    left()


@contextmanager
def waiting_for_answer(step: int) -> Iterator[None]:
    """A wait of a sampling thread for other workers where no communication thread serves it: kept in that one's slot.

    Several may wait at once: the slot then has the step of the last one.
    """
    with _for_communication():
        at(EXCHANGE, step)
        entered()
    try:
        yield
    except BaseException:
        _words[COMMUNICATION * _WORDS + _FAILED] = 1
        raise
    with _for_communication():
        left()


@contextmanager
def _for_communication() -> Iterator[None]:
    """The calling thread writes into that slot within the block, as no other thread."""
    with _communication:
        own = _base()
        claim(COMMUNICATION)
        try:
            yield
        finally:
            _own.base = own


def entered() -> None:
    """The calling thread begins to wait in a collective."""
    words, base = _words, _base()
    words[base + _ENTERED] += 1
    words[base] += 1


def left() -> None:
    """The calling thread has ended the collective."""
    words, base = _words, _base()
    words[base + _LEFT] += 1
    words[base] += 1


def read(path: Path) -> list[Place]:
    """The threads of the worker whose record is in a file, by slot."""
    return _places(memoryview(path.read_bytes()).cast("q"))


def own() -> Place:
    """Where this process, a worker, is."""
    return place_of(_places(_words))


def _places(words: memoryview) -> list[Place]:
    places = []
    for base in range(0, _SLOTS * _WORDS, _WORDS):
        changes, stage, phase, step, went_in, came_out, failed = words[base : base + _FAILED + 1].tolist()
        places.append(Place(changes, STAGES[stage], PHASES[phase], step, went_in, came_out, bool(failed)))
    return places


def place_of(places: list[Place]) -> Place:
    """Where a worker is: its trainer or, where that waits for a minibatch, the thread that makes it."""
    trainer, communication = places[TRAINER], places[COMMUNICATION]
    if trainer.stage != BLOCKED:
        return trainer
    step = trainer.phase, trainer.step
    for place in places[_FIRST_SAMPLER:]:
        if place.changes and (place.phase, place.step) == step:
            return place if place.stage == SAMPLING else communication
    return trainer


def words(places: list[Place]) -> str:
    """Where a worker is: `in stage forward, fit step 7`."""
    return place_of(places).in_words()


def behind(places: Mapping[int, list[Place]]) -> int | None:
    """The rank that keeps the others waiting in a collective; None where that cannot be told."""
    for slot in (TRAINER, COMMUNICATION):
        at = {rank: found[slot] for rank, found in places.items()}
        free = [rank for rank, place in at.items() if not place.waits]
        if free and len(free) < len(at):
            return min(free, key=lambda rank: at[rank].entered)
    return None
