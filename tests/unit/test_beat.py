"""The record of where a worker's threads are."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from distgnn import beat
from distgnn.beat import COMMUNICATION, TRAINER
from distgnn.timeline import BLOCKED, EXCHANGE, FETCH, FORWARD, RECORD, SAMPLING, TURN


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Path]:
    """Of this process, whose calling thread is the trainer."""
    before = beat._words
    path = tmp_path / "beat"
    path.write_bytes(bytes(beat.SIZE))
    beat.share(str(path))
    yield path
    beat._words = before


def in_a_thread(work: object) -> None:
    thread = threading.Thread(target=work)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_a_stage_its_step_and_what_is_within_it(record: Path) -> None:
    assert beat.read(record)[TRAINER].stage == beat.START
    beat.at(FETCH, 7, "full")
    place = beat.read(record)[TRAINER]
    assert (place.stage, place.phase, place.step, place.waits) == (FETCH, "full", 7, False)
    with beat.within(RECORD):
        inside = beat.read(record)[TRAINER]
        assert (inside.stage, inside.phase, inside.step) == (RECORD, "full", 7)
    after = beat.read(record)[TRAINER]
    assert (after.stage, after.step) == (FETCH, 7)
    assert place.changes < inside.changes < after.changes


def test_a_thread_stays_where_it_failed(record: Path) -> None:
    beat.at(FORWARD, 3)
    with pytest.raises(ZeroDivisionError), beat.within(RECORD), beat.waiting():
        raise ZeroDivisionError
    place = beat.read(record)[TRAINER]
    assert (place.stage, place.waits, place.failed) == (RECORD, True, True)


def test_collectives_are_counted(record: Path) -> None:
    with beat.waiting():
        assert beat.read(record)[TRAINER].waits
    place = beat.read(record)[TRAINER]
    assert (place.entered, place.left, place.failed) == (1, 1, False)


def test_every_thread_has_a_place_of_its_own(record: Path) -> None:
    def communicate() -> None:
        beat.claim(COMMUNICATION)
        beat.at(EXCHANGE, 4)

    beat.at(BLOCKED, 5, "fit")
    in_a_thread(communicate)
    in_a_thread(lambda: beat.at(SAMPLING, 5))
    trainer, communication, *samplers = beat.read(record)
    assert (trainer.stage, communication.stage) == (BLOCKED, EXCHANGE)
    assert [(p.stage, p.phase, p.step) for p in samplers if p.changes] == [(SAMPLING, "fit", 5)]


def test_a_trainer_that_waits_for_its_minibatch_is_where_that_is_made(record: Path) -> None:
    beat.at(BLOCKED, 5, "fit")
    assert beat.place_of(beat.read(record)).stage == BLOCKED
    in_a_thread(lambda: beat.at(SAMPLING, 6))  # a later one
    assert beat.place_of(beat.read(record)).stage == BLOCKED
    in_a_thread(lambda: beat.at(SAMPLING, 5))
    assert beat.place_of(beat.read(record)).stage == SAMPLING
    beat.at(FETCH, 5)
    assert beat.place_of(beat.read(record)).stage == FETCH


def test_a_sampler_that_nobody_serves_waits_in_the_place_of_the_communication(record: Path) -> None:
    seen = []

    def sample() -> None:
        beat.at(SAMPLING, 5)
        with beat.within("waiting for the exchange", 5), beat.waiting_for_answer(5):
            places = beat.read(record)
            seen.append((places[COMMUNICATION].step, places[COMMUNICATION].waits, beat.place_of(places).stage))
        seen.append(beat.place_of(beat.read(record)).stage)
        with contextlib.suppress(ZeroDivisionError), beat.waiting_for_answer(6):
            raise ZeroDivisionError

    beat.at(BLOCKED, 5, "fit")
    in_a_thread(sample)
    assert seen == [(5, True, EXCHANGE), SAMPLING]
    place = beat.read(record)[COMMUNICATION]
    assert (place.entered, place.left, place.failed) == (2, 1, True)


def test_a_sampler_that_waits_for_others_is_where_the_communication_is(record: Path) -> None:
    def communicate() -> None:
        beat.claim(COMMUNICATION)
        beat.at(TURN, 5)

    beat.at(BLOCKED, 5, "fit")
    in_a_thread(communicate)
    in_a_thread(lambda: beat.at("waiting for the exchange", 5))
    assert beat.place_of(beat.read(record)).stage == TURN
