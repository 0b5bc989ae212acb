"""The feed hands every minibatch over in order, one copied ahead; on a GPU by the rules of streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from distgnn.loader import DeviceFeed


class Part:
    """A pretended tensor, and what is made of it."""

    def __init__(self, batch: int, log: list[tuple[Any, ...]]) -> None:
        self.batch, self.log = batch, log

    def tensors(self) -> Iterator[Any]:
        yield self

    def record_stream(self, stream: Any) -> None:
        self.log.append(("keep", self.batch, stream))


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_every_minibatch_comes_once_in_order_and_one_is_ahead(n: int) -> None:
    log: list[tuple[Any, ...]] = []

    def copy(batch: Any) -> list[Part]:
        log.append(("copy", batch))
        return [Part(batch, log)]

    feed = DeviceFeed(iter(range(n)), torch.device("cpu"), copy)  # type: ignore[arg-type]
    for batch, (part,) in feed:
        assert part.batch == batch
        log.append(("use", batch))
    expected: list[tuple[Any, ...]] = [("copy", 0)] if n else []
    for i in range(n):
        expected += [("copy", i + 1)] if i + 1 < n else []
        expected.append(("use", i))
    assert log == expected


def test_an_error_of_the_sampler_arrives() -> None:
    def batches() -> Iterator[int]:
        yield 0
        yield 1
        raise RuntimeError("sampler")

    feed = DeviceFeed(batches(), torch.device("cpu"), lambda batch: [Part(batch, [])])  # type: ignore[arg-type]
    seen = []
    with pytest.raises(RuntimeError, match="sampler"):
        seen.extend(batch for batch, _ in feed)
    assert seen == [0]


def test_a_consumer_that_stops_ends_the_sampler() -> None:
    ended = []

    def batches() -> Iterator[int]:
        try:
            yield from range(9)
        finally:
            ended.append(True)

    for _ in DeviceFeed(batches(), torch.device("cpu"), lambda batch: [Part(batch, [])]):  # type: ignore[arg-type]
        break
    assert ended == [True]


def test_streams_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[Any, ...]] = []
    current = ["trainer"]

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.copies = 0

        def record_event(self) -> str:
            self.copies += 1
            return f"event {self.copies - 1}"

    class Consumer:
        def wait_event(self, event: str) -> None:
            log.append(("wait", event))

    consumer = Consumer()

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        current[0] = "copies"
        yield
        current[0] = "trainer"

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: consumer)

    def copy(batch: Any) -> list[Part]:
        log.append(("copy", batch, current[0]))
        return [Part(batch, log)]

    for batch, _ in DeviceFeed(iter(range(3)), torch.device("cuda", 0), copy):  # type: ignore[arg-type]
        log.append(("use", batch, current[0]))
    assert log == [
        ("copy", 0, "copies"),
        ("copy", 1, "copies"),
        ("wait", "event 0"),
        ("keep", 0, consumer),
        ("use", 0, "trainer"),
        ("copy", 2, "copies"),
        ("wait", "event 1"),
        ("keep", 1, consumer),
        ("use", 1, "trainer"),
        ("wait", "event 2"),
        ("keep", 2, consumer),
        ("use", 2, "trainer"),
    ]
