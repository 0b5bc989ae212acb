"""The next minibatch's tensors are copied to the worker's device while the trainer computes the current one.

On a GPU the copies go over a stream of their own. The CPU runs the same loop without streams. What concerns CUDA in
this module has not been run on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, Generic, Protocol, TypeVar

import torch

from distgnn import beat
from distgnn.timeline import COPY, Timeline
from distgnn.types import MiniBatch


class HasTensors(Protocol):
    """Something made of tensors, such as a block's."""

    def tensors(self) -> Iterator[torch.Tensor]:
        """All of them."""


T = TypeVar("T", bound=HasTensors)


class DeviceFeed(Generic[T]):
    """Iterates over (minibatch, its tensors on the device), one minibatch ahead of the consumer.

    Only what the sampler has drawn is copied ahead: embedding rows are fetched by the trainer, after its last update.

    Args:
        batches: minibatches in order. device: the worker's.
        copy: makes a minibatch's tensors, by asynchronous copies on the current stream.
        timeline: where the copies' events go; None: nowhere.

    Attributes:
        copy_seconds: wall time of making the copies (on a GPU: of asking for them).
    """

    def __init__(
        self,
        batches: Iterable[MiniBatch],
        device: torch.device,
        copy: Callable[[MiniBatch], list[T]],
        timeline: Timeline | None = None,
    ) -> None:
        self.batches = batches
        self.copy = copy
        self.timeline = timeline
        self.copy_seconds = 0.0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __iter__(self) -> Iterator[tuple[MiniBatch, list[T]]]:
        ahead = None
        for batch in self.batches:
            made = self._copied(batch)
            if ahead is not None:
                yield self._handed_over(*ahead)
            ahead = (batch, *made)
        if ahead is not None:
            yield self._handed_over(*ahead)

    def _copied(self, batch: MiniBatch) -> tuple[list[T], Any]:
        """The tensors, and the event of the copy stream after which they are whole (None on the CPU)."""
        started = time.perf_counter()
        beat.at(COPY)
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            made = self.copy(batch)
        event = None if self._stream is None else self._stream.record_event()
        now = time.perf_counter()
        self.copy_seconds += now - started
        if self.timeline is not None:
            self.timeline.add(COPY, started, now, batch.step)
        return made, event

    def _handed_over(self, batch: MiniBatch, made: list[T], event: Any) -> tuple[MiniBatch, list[T]]:
        if event is not None:
            consumer = torch.cuda.current_stream()
            # The event and not the stream: that one already has the copies of the minibatch after.
            consumer.wait_event(event)
            for part in made:
                for tensor in part.tensors():
                    # Else the copy stream's next tensors could take the memory while the consumer's work still waits.
                    tensor.record_stream(consumer)
        return batch, made
