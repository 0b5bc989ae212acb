"""Workers on a Ray cluster: TorchTrainer round the jobs that plain processes run too.

The restart after a worker's death is Ray's (`cluster.max_failures`); what it restarts from is the run's own checkpoint.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import ray
import ray.train
import torch.distributed as dist
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray._private.state import available_resources_per_node
from ray.exceptions import RayActorError, RayError
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distgnn import ray_probe, storage
from distgnn.config import ClusterConfig, Config
from distgnn.config_reading import config_from_dict
from distgnn.distributed.process_group import progress_to
from distgnn.distributed.shared_memory import leave_meetings
from distgnn.partition.dataset import PreparedDataset
from distgnn.ray_faults import FaultWatch, Mailbox, ProcessGroup, brief, keep_record
from distgnn.training.launch import Report, run_rank
from distgnn.types import UserError, WorkerError

_POLL_SECONDS = 2.0
_SAY_SECONDS = 30.0
_SETTLE_SECONDS = 5.0  # until what a group gave back counts as free
# Ray's own 60 s are for clusters that grow on demand; here it asks only for what it believes to be there.
_START_SECONDS = 20
_START = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
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
    connect()
    cluster = config.cluster
    per_worker = worker_resources(cluster, ray.cluster_resources())
    refuse_too_many(cluster, per_worker, ray.cluster_resources())
    _wait_until_free(cluster, per_worker)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # With this process and Ray's controller, so that the loss of another node takes workers alone.
    mailbox = Mailbox.options(num_cpus=0, scheduling_strategy=here).remote()  # type: ignore[attr-defined]
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
    with _environment_of_ray(cluster):
        outcome = _fit(task, cluster, per_worker, _run_config(run, cluster, threads, mailbox))
    if "mistake" in outcome:
        raise UserError(outcome["mistake"])
    report: Report = outcome["report"]
    return report


@contextmanager
def _environment_of_ray(cluster: ClusterConfig) -> Iterator[None]:
    """What Ray takes from the environment; it passes it on to its controller and workers. The user's own goes first."""
    timeout = str(cluster.timeout_seconds)
    wanted = {
        # It would print every line of a worker twice, through its log file and through its own print.
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        _START: str(_START_SECONDS),
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": timeout,  # of its own barriers, which have none otherwise
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": timeout,
    }
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _fit(
    task: dict[str, Any], cluster: ClusterConfig, per_worker: dict[str, float], run_config: ray.train.RunConfig
) -> dict[str, Any]:
    """What rank 0's `_work` returns. Workers that cannot be placed are waited for or, of a range, done without."""
    most, failed_starts = cluster.max_workers, 0
    while True:
        trainer = TorchTrainer(
            _work,
            train_loop_config=task,
            torch_config=ProcessGroup(timeout_s=max(1, int(cluster.timeout_seconds))),
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
        except (TrainingFailedError, RayActorError) as error:
            box = task["mailbox"]
            mistake, fault = ray.get([box.mistake.remote(), box.fault.remote()])
            _clear_away(*ray.get([box.placement.remote(), box.cleaner.remote()]))
            if mistake:
                raise UserError(mistake) from None
            if _found_no_room(error):
                most = _make_do(cluster, per_worker, most)
            elif isinstance(error, (ControllerError, RayActorError)) and failed_starts < cluster.max_failures:
                failed_starts += 1
                what = fault or _controller_failure(error)
                print(f"{what}; restart {failed_starts} of {cluster.max_failures}", file=sys.stderr, flush=True)
            else:
                raise _worker_error(error, fault, cluster.max_failures) from None
        else:
            return outcome


def _clear_away(placement: PlacementGroup | None, cleaner: Any) -> None:
    """What a controller leaves that has died while it started workers."""
    if placement is not None:
        remove_placement_group(placement)
    if cleaner is not None:
        ray.kill(cleaner)


def _make_do(cluster: ClusterConfig, per_worker: dict[str, float], most: int) -> int:
    """The number of workers to start at most, where as many could not be placed. The least is waited for."""
    room, free = _room(cluster, per_worker)
    if most == cluster.min_workers:
        print(f"{most} workers could not be placed: there is room for {free}", file=sys.stderr, flush=True)
        _wait_until_free(cluster, per_worker)
        return most
    if free < min(room, most):  # others hold the rest, which Ray does not know: it would ask for it again
        most = cluster.fitting_workers(free)
        found = f"at most {most} from here on"
    else:  # Ray counted a node that has left
        found = f"there is room for {room} now"
    print(f"not all of the workers could be placed: {found}", file=sys.stderr, flush=True)
    return most


def _room(cluster: ClusterConfig, per_worker: Mapping[str, float]) -> tuple[int, int]:
    """Workers that the nodes hold, and those that they have free once what this job gave back is counted."""
    started = time.monotonic()
    while True:
        room = _workers_on(_alive(), per_worker)
        free = _workers_on(available_resources_per_node().values(), per_worker)
        if free >= min(room, cluster.max_workers) or time.monotonic() - started > _SETTLE_SECONDS:
            return room, free
        time.sleep(0.1)


def _workers_on(nodes: Iterable[Mapping[str, float]], per_worker: Mapping[str, float]) -> int:
    """Workers that nodes with these resources hold; each worker is on one node."""
    return sum(int(min(node.get(kind, 0.0) // amount for kind, amount in per_worker.items())) for node in nodes)


def _found_no_room(error: Exception) -> bool:
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
        raise UserError(f"the Ray cluster at {address} cannot be joined: {brief(error)}") from None


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
    """Wait for CPUs and GPUs that other jobs hold, or that a lost node had; at most `cluster.wait_seconds`."""
    started = time.monotonic()
    said = -_SAY_SECONDS
    while True:
        nodes = available_resources_per_node().values()
        if _workers_on(nodes, per_worker) >= cluster.min_workers:
            return
        waited = time.monotonic() - started
        needs = _needs(cluster, per_worker, nodes)
        held = _workers_on(_alive(), per_worker) >= cluster.min_workers
        if waited >= cluster.wait_seconds:
            state, advice = (
                ("is busy with other jobs", "stop another job") if held else ("has too few nodes", "add one")
            )
            raise UserError(
                f"the Ray cluster {state}: this one needs {needs}, and has waited {waited:.0f} s "
                f"(cluster.wait_seconds); {advice}, raise it, or lower cluster.workers"
            )
        if waited - said >= _SAY_SECONDS:
            said = waited
            what = "other jobs on the Ray cluster" if held else "another node of the Ray cluster"
            print(f"waiting for {what}: needs {needs}", file=sys.stderr, flush=True)
        time.sleep(min(_POLL_SECONDS, max(0.1, cluster.wait_seconds - waited)))


def _needs(cluster: ClusterConfig, per_worker: Mapping[str, float], nodes: Collection[Mapping[str, float]]) -> str:
    """What is short, in words; where only no node has enough of it, the workers themselves."""
    short = []
    for kind, amount in per_worker.items():
        needed, free = amount * cluster.min_workers, sum(node.get(kind, 0.0) for node in nodes)
        if needed > free:
            short.append(f"{needed:g} {kind}s of which {free:g} are free")
    return ", ".join(short) or f"{cluster.min_workers} workers of which its nodes hold {_workers_on(nodes, per_worker)}"


def _alive() -> list[dict[str, float]]:
    """What the nodes have in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _run_config(run: str, cluster: ClusterConfig, threads: int, mailbox: Any) -> ray.train.RunConfig:
    """The same storage path and name for the same run: RUN/ray, which holds Ray's own notes and no checkpoint."""
    environment = {"OMP_NUM_THREADS": str(threads)}
    environment |= {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    if all(ip_address(node["NodeManagerAddress"]).is_loopback for node in ray.nodes() if node["Alive"]):
        environment |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    filesystem, path = storage.filesystem(run)
    start = float(os.environ[_START])
    watch = FaultWatch(mailbox, cluster.max_failures, cluster.timeout_seconds, start, cluster.wait_seconds)
    return ray.train.RunConfig(
        storage_path=storage.from_anywhere(run) if storage.is_local(run) else path,
        storage_filesystem=None if storage.is_local(run) else PyFileSystem(FSSpecHandler(filesystem)),
        name="ray",
        logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=0),
        callbacks=[watch],
        worker_runtime_env={"env_vars": environment},
    )


def _work(task: dict[str, Any]) -> dict[str, Any]:
    """One worker's attempt: `{"report": ...}` or `{"mistake": ...}`.

    A user's mistake is no failure, and no attempt is made again for it. The worker that meets one leaves the message
    and the group; peers whose collectives break by that find the message.
    """
    if task["cache"]:
        os.environ.setdefault(_CACHE, task["cache"])  # a node's own goes first
    mailbox = task["mailbox"]
    known = ray.get(mailbox.mistake.remote())
    if known:
        return {"mistake": known}
    config = config_from_dict(task["config"])
    context = ray.train.get_context()
    keep_record()
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
        ray.get(mailbox.leave_mistake.remote(str(error)))
        if config.cluster.use_gpu:
            raise  # a peer in an NCCL collective notices no broken connection: Ray must end it
        leave_meetings()
        if dist.is_initialized():
            dist.destroy_process_group()
        return {"mistake": str(error)}
    except Exception:
        message = ray.get(mailbox.mistake.remote())
        if message:
            return {"mistake": message}
        raise
    return {"report": report}


def _worker_error(error: Exception, fault: str, restarts: int) -> WorkerError:
    tried = f"; {restarts} restart{'s' * (restarts > 1)} did not help (cluster.max_failures)" if restarts else ""
    return WorkerError(f"{fault or _controller_failure(error)}{tried}")


def _controller_failure(error: Exception) -> str:
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    return f"Ray could not start the workers, or has lost their controller: {brief(cause)}"
