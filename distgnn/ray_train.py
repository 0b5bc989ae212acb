"""Workers on a Ray cluster: TorchTrainer round the jobs that plain processes run too. The one module of ray.train.

The restart after a worker's death is Ray's (`cluster.max_failures`); what it restarts from is the run's own checkpoint.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

import ray
import ray.train
import torch.distributed as dist
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray._private.state import available_resources_per_node
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distgnn import ray_probe, storage
from distgnn.config import ClusterConfig, Config, config_from_dict
from distgnn.distributed.process_group import progress_to
from distgnn.distributed.shared_memory import leave_meetings
from distgnn.partition.dataset import PreparedDataset
from distgnn.training.launch import Report, run_rank
from distgnn.types import UserError, WorkerError

_POLL_SECONDS = 2.0
_SAY_SECONDS = 30.0
_SETTLE_SECONDS = 5.0  # until what a group gave back counts as free
# Ray's own 60 s are for clusters that grow on demand; of a range it asks only for what it believes to be there.
_RANGE_START_SECONDS = 20
_STORE = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
_PASSED_ON = ("NUMBA_CACHE_DIR", *_STORE)
_CACHE = "DISTGNN_CACHE"
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def on_ray_workers(job: str, config: Config, run: str, dataset: PreparedDataset) -> Report:
    """Run a job on `cluster.workers` workers of the Ray cluster; rank 0's report.

    With a range Ray starts as many as its nodes hold, at every attempt anew, and looks every `cluster.resize_seconds`
    whether another number has become possible.

    Raises:
        UserError: no cluster, a wrong token, fewer CPUs or GPUs than asked for, or a mistake that a worker has met.
        WorkerError: a worker died more often than `cluster.max_failures`.
    """
    # Ray would print every line of a worker twice, through its log file and through its own print.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    if config.cluster.min_workers < config.cluster.max_workers:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_RANGE_START_SECONDS))
    connect()
    cluster = config.cluster
    per_worker = worker_resources(cluster, ray.cluster_resources())
    refuse_too_many(cluster, per_worker, ray.cluster_resources())
    _wait_until_free(cluster, per_worker)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # With this process and Ray's controller, so that the loss of another node takes workers alone.
    mailbox = _Mailbox.options(num_cpus=0, scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    threads = int(per_worker["CPU"])
    trace = storage.from_anywhere(config.run.trace) if config.run.trace else ""
    task = {
        "job": job,
        # An attempt after a failure goes on from the run's last checkpoint; the first one of a new run finds none.
        "config": dataclasses.replace(config, run=dataclasses.replace(config.run, resume=True, trace=trace)).to_dict(),
        "run": storage.from_anywhere(run),
        "dataset": storage.from_anywhere(dataset.path),
        "threads": threads,
        "cache": os.environ.get(_CACHE, ""),
        "mailbox": mailbox,
    }
    outcome = _fit(task, cluster, per_worker, _run_config(run, cluster, threads))
    if "mistake" in outcome:
        raise UserError(outcome["mistake"])
    report: Report = outcome["report"]
    return report


def _fit(
    task: dict[str, Any], cluster: ClusterConfig, per_worker: dict[str, float], run_config: ray.train.RunConfig
) -> dict[str, Any]:
    """What rank 0's `_work` returns. Of a range of workers, as many are started as can be placed."""
    most = cluster.max_workers
    while True:
        trainer = TorchTrainer(
            _work,
            train_loop_config=task,
            torch_config=TorchConfig(timeout_s=max(1, int(cluster.timeout_seconds))),
            scaling_config=ray.train.ScalingConfig(
                num_workers=most if cluster.min_workers == most else (cluster.min_workers, most),
                use_gpu=cluster.use_gpu,
                resources_per_worker=per_worker,
                elastic_resize_monitor_interval_s=cluster.resize_seconds,
            ),
            run_config=run_config,
        )
        try:
            outcome: dict[str, Any] = trainer.fit().return_value
        except TrainingFailedError as error:
            message = ray.get(task["mailbox"].message.remote())
            if message:
                raise UserError(message) from None
            if not (most > cluster.min_workers and _found_no_room(error)):
                raise _worker_error(error, cluster.max_failures) from None
            room, free = _room(cluster, per_worker)
            if free < min(room, most):  # others hold the rest, which Ray does not know: it would ask for it again
                most = cluster.fitting_workers(free)
                found = f"at most {most} from here on"
            else:  # Ray counted a node that has left
                found = f"there is room for {room} now"
            print(f"not all of the workers could be placed: {found}", file=sys.stderr, flush=True)
        else:
            return outcome


def _room(cluster: ClusterConfig, per_worker: Mapping[str, float]) -> tuple[int, int]:
    """Workers that the nodes hold, and those that they have free once what this job gave back is counted."""
    started = time.monotonic()
    while True:
        room = _workers_on((node["Resources"] for node in ray.nodes() if node["Alive"]), per_worker)
        free = _workers_on(available_resources_per_node().values(), per_worker)
        if free >= min(room, cluster.max_workers) or time.monotonic() - started > _SETTLE_SECONDS:
            return room, free
        time.sleep(0.1)


def _workers_on(nodes: Iterable[Mapping[str, float]], per_worker: Mapping[str, float]) -> int:
    """Workers that nodes with these resources hold; each worker is on one node."""
    return sum(int(min(node.get(kind, 0.0) // amount for kind, amount in per_worker.items())) for node in nodes)


def _found_no_room(error: TrainingFailedError) -> bool:
    """Whether Ray waited in vain for the workers to be placed.

    It knows what its training jobs hold, and not what others do, and looks every 20 s which nodes there are: it may ask
    for more workers than can be had.
    """
    return isinstance(error, ControllerError) and isinstance(error.controller_failure, WorkerGroupStartupTimeoutError)


def check_cluster(cluster: ClusterConfig) -> None:
    """Refuse before any work what could not run: no cluster there, a wrong token, too few CPUs or GPUs."""
    connect()
    total = ray.cluster_resources()
    refuse_too_many(cluster, worker_resources(cluster, total), total)


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or the one on this machine; never starts one.

    Raises:
        UserError: none there, or it refuses the token.
    """
    if ray.is_initialized():
        return
    address = ray_probe.resolve(ray_probe.address_from_environment())
    if not address.startswith("ray://"):
        ray_probe.probe(address)
    # A submitted job has the environment of its submission throughout; Ray refuses to be told a part of it again.
    store = {name: os.environ[name] for name in _STORE if name in os.environ and _SUBMITTED not in os.environ}
    runtime_env = {"env_vars": store} if store else None  # for Ray's own writing to RUN/ray
    try:
        ray.init(address=address, runtime_env=runtime_env, log_to_driver=True, logging_level=logging.WARNING)
    except (ConnectionError, RayError, RuntimeError, ValueError, TimeoutError) as error:
        raise UserError(f"the Ray cluster at {address} cannot be joined: {_short(error)}") from None


def worker_resources(cluster: ClusterConfig, total: Mapping[str, float]) -> dict[str, float]:
    """What a worker asks Ray for: its threads as CPUs (the cluster's shared out by default), and one GPU if any."""
    threads = cluster.threads_per_worker or max(1, int(total.get("CPU", 0)) // cluster.max_workers)
    return {"CPU": float(threads), **({"GPU": 1.0} if cluster.use_gpu else {})}


def refuse_too_many(cluster: ClusterConfig, per_worker: Mapping[str, float], total: Mapping[str, float]) -> None:
    """Refuse at once what the whole cluster could not give."""
    for kind, amount in per_worker.items():
        needed, there = amount * cluster.min_workers, total.get(kind, 0.0)
        if needed > there:
            lower = "cluster.workers or cluster.threads_per_worker" if kind == "CPU" else "cluster.workers"
            raise UserError(
                f"cluster.workers = {cluster.min_workers} with {amount:g} {kind} each need {needed:g} {kind}s, the Ray "
                f"cluster has {there:g}; lower {lower}, or add nodes"
            )


def _wait_until_free(cluster: ClusterConfig, per_worker: Mapping[str, float]) -> None:
    """Wait for other jobs to give back what this one needs; says so, and gives up after `cluster.wait_seconds`."""
    started = time.monotonic()
    said = -_SAY_SECONDS
    while True:
        free = ray.available_resources()
        short = [kind for kind, amount in per_worker.items() if amount * cluster.min_workers > free.get(kind, 0.0)]
        if not short:
            return
        waited = time.monotonic() - started
        needs = ", ".join(
            f"{per_worker[kind] * cluster.min_workers:g} {kind}s of which {free.get(kind, 0.0):g} are free"
            for kind in short
        )
        if waited >= cluster.wait_seconds:
            raise UserError(
                f"the Ray cluster is busy with other jobs: this one needs {needs}, and has waited "
                f"{waited:.0f} s (cluster.wait_seconds); stop another job, raise it, or lower cluster.workers"
            )
        if waited - said >= _SAY_SECONDS:
            said = waited
            print(f"waiting for other jobs on the Ray cluster: needs {needs}", file=sys.stderr, flush=True)
        time.sleep(min(_POLL_SECONDS, max(0.1, cluster.wait_seconds - waited)))


def _run_config(run: str, cluster: ClusterConfig, threads: int) -> ray.train.RunConfig:
    """The same storage path and name for the same run: RUN/ray, which holds Ray's own notes and no checkpoint."""
    environment = {"OMP_NUM_THREADS": str(threads)}
    environment |= {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    if all(ip_address(node["NodeManagerAddress"]).is_loopback for node in ray.nodes() if node["Alive"]):
        environment |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    filesystem, path = storage.filesystem(run)
    # Of a range, fewer workers are tried then; a fixed number is waited for.
    startup_failures = 0 if cluster.min_workers < cluster.max_workers else -1
    return ray.train.RunConfig(
        storage_path=storage.from_anywhere(run) if storage.is_local(run) else path,
        storage_filesystem=None if storage.is_local(run) else PyFileSystem(FSSpecHandler(filesystem)),
        name="ray",
        logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        failure_config=ray.train.FailureConfig(
            max_failures=cluster.max_failures, controller_failure_limit=startup_failures
        ),
        worker_runtime_env={"env_vars": environment},
    )


@ray.remote
class _Mailbox:
    """Where a worker leaves a user's mistake, so that no attempt is made again for it."""

    def __init__(self) -> None:
        self._message = ""

    def leave(self, message: str) -> None:
        self._message = self._message or message

    def message(self) -> str:
        return self._message


def _work(task: dict[str, Any]) -> dict[str, Any]:
    """One worker's attempt: `{"report": ...}` or `{"mistake": ...}`.

    A user's mistake is no failure, and no attempt is made again for it. The worker that meets one leaves the message
    and the group; peers whose collectives break by that find the message.
    """
    if task["cache"]:
        os.environ.setdefault(_CACHE, task["cache"])  # a node's own goes first
    mailbox = task["mailbox"]
    known = ray.get(mailbox.message.remote())
    if known:
        return {"mistake": known}
    config = config_from_dict(task["config"])
    context = ray.train.get_context()
    try:
        with progress_to(ray.train.report):
            report = run_rank(
                task["job"],
                config,
                task["run"],
                PreparedDataset.open(task["dataset"], verify=False),
                context.get_world_rank(),
                context.get_world_size(),
                "",
                task["threads"],
                get_device() if config.cluster.use_gpu else None,
            )
    except UserError as error:
        ray.get(mailbox.leave.remote(str(error)))
        if config.cluster.use_gpu:
            raise  # a peer in an NCCL collective notices no broken connection: Ray must end it
        leave_meetings()
        if dist.is_initialized():
            dist.destroy_process_group()
        return {"mistake": str(error)}
    except Exception:
        message = ray.get(mailbox.message.remote())
        if message:
            return {"mistake": message}
        raise
    return {"report": report}


def _worker_error(error: TrainingFailedError, restarts: int) -> WorkerError:
    tried = f"; {restarts} restarts did not help (cluster.max_failures)" if restarts else ""
    if not isinstance(error, WorkerGroupError):
        return WorkerError(f"the workers could not be started: {_short(error)}{tried}")
    # A death goes before the errors of its peers, whose connections broke by it.
    failures = error.worker_failures
    rank = min(failures, key=lambda r: (not isinstance(failures[r], RayError), r))
    return WorkerError(f"worker {rank} died: {_short(failures[rank])}{tried}")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
