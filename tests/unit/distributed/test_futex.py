"""Sleeping until a word of memory changes."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from distgnn.distributed import futex

pytestmark = pytest.mark.skipif(not futex.AVAILABLE, reason="no futex on this system")
LONG = 60.0


def test_who_waits_is_woken() -> None:
    word = np.zeros(2, np.int32)
    waiting = threading.Event()

    def sleep() -> None:
        waiting.set()
        while word[1] == 0:
            futex.wait(word[1:].ctypes.data, 0, LONG)

    sleeper = threading.Thread(target=sleep)
    started = time.monotonic()
    sleeper.start()
    waiting.wait()
    time.sleep(0.05)
    word[1] = 1
    futex.wake(word[1:].ctypes.data)
    sleeper.join(LONG)
    assert not sleeper.is_alive()
    assert time.monotonic() - started < LONG / 2


def test_a_word_that_has_changed_is_not_waited_for() -> None:
    word = np.full(1, -7, np.int32)
    started = time.monotonic()
    futex.wait(word.ctypes.data, -6, LONG)
    assert time.monotonic() - started < LONG / 2


def test_a_wait_ends_in_time() -> None:
    word = np.full(1, -7, np.int32)
    started = time.monotonic()
    futex.wait(word.ctypes.data, -7, 0.2)
    assert time.monotonic() - started >= 0.19
