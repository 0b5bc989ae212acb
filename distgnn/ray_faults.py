"""What ends an attempt on Ray, in words: which worker died, stalled or failed, and in which stage.

Ray tells who has failed, not who is to blame: the peers of a stopped worker fail, and it does not. So the controller
asks every worker where it is (see `distgnn.beat`), and for one that does not answer another process of its node.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client as reservations
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.util.placement_group import PlacementGroup

from distgnn import beat
from distgnn.training.supervision import failed_by_others, is_stopped

_RECORD = "distgnn-beat"
_ANSWER_SECONDS = 3.0
_LEAST_START_SECONDS = 120.0  # imports and a first connection, on a node that does other things too
_RESERVED_SECONDS = 45  # Ray renews it every 20 s
_RAY_LOOKS_SECONDS = 40.0  # until Ray has noticed which nodes there are


@ray.remote
class Mailbox:
    """Where the driver finds a user's mistake, for which no attempt is made again, and of the last attempt what it held
    and what ended it."""

    def __init__(self) -> None:
        self._mistake = self._fault = ""
        self._placement: PlacementGroup | None = None
        self._cleaner: Any = None

    def leave_mistake(self, message: str) -> None:
        """The first one is kept."""
        self._mistake = self._mistake or message

    def mistake(self) -> str:
        """Empty: none."""
        return self._mistake

    def leave_fault(self, message: str) -> None:
        """The last one is kept."""
        self._fault = message

    def fault(self) -> str:
        """Empty: none."""
        return self._fault

    def leave_placement(self, placement: PlacementGroup) -> None:
        """The last one is kept."""
        self._placement = placement

    def placement(self) -> PlacementGroup | None:
        """None: nothing has been placed."""
        return self._placement

    def leave_cleaner(self, cleaner: Any) -> None:
        """The actor that Ray has to take back what the last controller placed."""
        self._cleaner = cleaner

    def cleaner(self) -> Any:
        """None: there has been none."""
        return self._cleaner


class ProcessGroup(TorchConfig):
    """torch.distributed as Ray sets it up. It is not taken down by asking the workers, who may be dead or stopped."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Of Ray's interface."""
        return _Backend


class _Backend(_TorchBackend):
    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Nothing: the workers' processes end next."""


class FaultWatch(ControllerCallback, WorkerGroupCallback):
    """In Ray's controller: says what ended each attempt, and ends a run that gets no workers.

    Args:
        mailbox: where it is left. restarts: that Ray makes. timeout: of a collective, seconds.
        start: that Ray waits for a group to be placed, seconds. wait: for nodes to come, seconds.
    """

    def __init__(self, mailbox: Any, restarts: int, timeout: float, start: float, wait: float) -> None:
        self._mailbox, self._restarts, self._timeout = mailbox, restarts, timeout
        self._start = start + max(timeout, _LEAST_START_SECONDS)
        self._wait = wait
        self._failures = 0
        self._workers: list[Any] = []
        self._alarm: threading.Timer | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In the controller, before it reserves and before Ray's own callbacks are called.

        What a killed run has reserved, Ray would keep for three minutes.
        """
        self.__dict__.update(state)
        reservations.AUTOSCALING_REQUESTS_EXPIRE_TIME_S = _RESERVED_SECONDS
        self._tell_cleaner()

    def after_controller_start(self, train_run_context: Any) -> None:
        """Before the first group."""
        self._tell_placements()
        self._await_room()

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Ray would wait for ever for a worker that stops while it starts."""
        self._set_alarm(self._start, "leave_fault", f"a worker has not started within {self._start:.0f} s")
        try:
            yield
        except BaseException:
            self._await_room()
            raise
        self._clear_alarm()
        self._mailbox.leave_fault.remote("")

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Whom to ask."""
        self._workers = worker_group.get_workers()

    def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
        """Another group may follow."""
        self._await_room()

    async def before_controller_shutdown(self) -> None:
        """None will."""
        self._clear_alarm()

    def before_controller_abort(self) -> None:
        """None will."""
        self._clear_alarm()

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Say what has ended the attempt, where something has."""
        errors = worker_group_status.errors
        if not errors or ray.get(self._mailbox.mistake.remote()):
            return
        self._failures += 1
        fault = self._fault(errors)
        ray.get(self._mailbox.leave_fault.remote(fault))
        if self._failures <= self._restarts:
            print(f"{fault}; restart {self._failures} of {self._restarts}", file=sys.stderr, flush=True)

    def _tell_cleaner(self) -> None:
        """Of a controller that dies before this actor is up nobody tells it, and it would stay for good."""
        launch, mailbox = PlacementGroupCleanerCallback.after_controller_start, self._mailbox

        def launch_and_tell(callback: Any, train_run_context: Any) -> None:
            launch(callback, train_run_context)
            mailbox.leave_cleaner.remote(callback._cleaner)

        PlacementGroupCleanerCallback.after_controller_start = launch_and_tell

    def _tell_placements(self) -> None:
        """Ray forgets the CPUs of a group that is being started, while the driver lives, if its controller dies."""
        place = WorkerGroup._create_placement_group

        def place_and_tell(*arguments: Any) -> Any:
            handle = place(*arguments)
            self._mailbox.leave_placement.remote(handle.placement_group)
            return handle

        WorkerGroup._create_placement_group = place_and_tell

    def _await_room(self) -> None:
        """Ray would wait for ever for as many nodes as the smallest number of workers needs."""
        limit = self._wait + _RAY_LOOKS_SECONDS
        said = f"there has been no room for the workers for {limit:.0f} s (cluster.wait_seconds)"
        self._set_alarm(limit, "leave_mistake", f"{said}; add nodes and go on with run.resume = true")

    def _set_alarm(self, seconds: float, method: str, message: str) -> None:
        """End the controller, and so the attempt, unless the alarm is cleared before."""
        self._clear_alarm()
        self._alarm = threading.Timer(seconds, self._end, (method, message))
        self._alarm.daemon = True
        self._alarm.start()

    def _clear_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _end(self, method: str, message: str) -> None:
        with suppress(Exception):
            ray.get(getattr(self._mailbox, method).remote(message), timeout=_ANSWER_SECONDS)
        os._exit(1)  # its loop may be blocked; the workers are this process's, and end with it

    def _fault(self, errors: Mapping[int, Exception]) -> str:
        """Who is to blame, and how, in words."""
        places, dead, silent = self._ask()
        for rank, error in errors.items():
            cause = error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else error
            if isinstance(cause, (RayActorError, OutOfMemoryError)):
                dead.setdefault(rank, cause)
        if dead:
            return "; ".join(f"{self._name(rank)} {_death(dead[rank])}" for rank in sorted(dead))
        if silent:
            rank = min(silent)
            stopped, found = self._look_at(rank, places)
            for other in silent:
                ray.kill(self._workers[other].actor)  # before Ray asks it to end, and waits
            return f"{self._name(rank)} {'is stopped' if stopped else 'does not answer'}{_where(found)}"
        places = {rank: found for rank, found in places.items() if found}
        own = [rank for rank in errors if rank in places and not failed_by_others(places[rank])]
        behind = None if own else beat.behind(places)
        if behind is not None:
            late = f"has kept the others waiting for {self._timeout:g} s (cluster.timeout_seconds)"
            return f"{self._name(behind)} {late}{_where(places[behind])}"
        rank = min(own or errors)
        return f"{self._name(rank)} failed{_where(places.get(rank, []))}: {brief(errors[rank])}"

    def _name(self, rank: int) -> str:
        metadata = self._workers[rank].metadata
        return f"worker {rank} (process {metadata.pid} on {metadata.node_ip})"

    def _ask(self) -> tuple[dict[int, list[beat.Place]], dict[int, Exception], list[int]]:
        """By rank: the threads of workers that answer, what says that others are dead; who does not answer."""
        asked = {worker.execute_async(own_places): rank for rank, worker in enumerate(self._workers)}
        answered, waiting = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
        places: dict[int, list[beat.Place]] = {}
        dead: dict[int, Exception] = {}
        for answer in answered:
            try:
                places[asked[answer]] = ray.get(answer)
            except (RayActorError, OutOfMemoryError) as error:
                dead[asked[answer]] = error
        return places, dead, [asked[answer] for answer in waiting]

    def _look_at(self, rank: int, answered: Mapping[int, object]) -> tuple[bool, list[beat.Place]]:
        """Whether a worker that does not answer is stopped, and its threads, as another process of its node finds."""
        silent = self._workers[rank].metadata
        if silent.node_id == ray.get_runtime_context().get_node_id():
            return state_of(silent.pid)
        for peer in answered:
            if self._workers[peer].metadata.node_id == silent.node_id:
                with suppress(Exception):
                    found: tuple[bool, list[beat.Place]] = ray.get(
                        self._workers[peer].execute_async(state_of, silent.pid), timeout=_ANSWER_SECONDS
                    )
                    return found
        return False, []


def keep_record() -> None:
    """Keep this worker's record in memory that other processes of its node find, and that goes with the process."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(_RECORD)
        os.ftruncate(descriptor, beat.SIZE)
        beat.share(f"/proc/self/fd/{descriptor}")


def record_of(pid: int) -> Path | None:
    """The record of a worker of this node; None: it keeps none yet, or no longer."""
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            if _RECORD in os.readlink(descriptor):
                return descriptor
    return None


def own_places() -> list[beat.Place]:
    """The threads of this worker; empty: it keeps no record yet."""
    return state_of(os.getpid())[1]


def state_of(pid: int) -> tuple[bool, list[beat.Place]]:
    """Whether a worker of this node is stopped, and its threads."""
    record = record_of(pid)
    return is_stopped(pid), [] if record is None else beat.read(record)


def _where(places: list[beat.Place]) -> str:
    return f" {beat.words(places)}" if places else ""


def _death(error: Exception) -> str:
    """What Ray knows of a worker's death."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or "low on memory" in text:
        return "was killed by Ray, since its node ran out of memory"
    if isinstance(error, ActorUnavailableError) or "node" in text and "died" in text and "SYSTEM_ERROR" not in text:
        return "cannot be reached: its node is lost"
    if "SYSTEM_ERROR" in text:
        return "has died: its process was killed, by the system for want of memory or by somebody, or it crashed"
    return f"has died: {brief(error)}"


def brief(error: BaseException) -> str:
    """An error in a line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
