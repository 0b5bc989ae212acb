"""Cores, memory, shared memory, disks and GPUs of this machine, against what the configuration asks for."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from distgnn import resources, storage
from distgnn.config import Config
from distgnn.doctor.finding import FAIL, OK, WARN, Examination, Finding

if TYPE_CHECKING:
    from distgnn.training.memory import Need

SHARED_MEMORY = Path("/dev/shm")
_OBJECT_STORE = 200_000_000  # bytes; what the local cluster gives Ray, which distgnn moves little through
_NCCL_BYTES = 1 << 30  # NCCL's buffers between the GPUs of a machine
_SCARCE, _FULL = 1 << 30, 64 << 20  # bytes left on a disk
_SMALLER = "lower model.dim, train.batch_size, sampler.fanout or evaluate.memory_gib"
_HOW_TO_SHARE = "give the container more: docker run --shm-size=2g; in Kubernetes an emptyDir of medium Memory there"


def usable_cores() -> float:
    """Cores that this process may use: its affinity, or the tightest quota of its control groups."""
    return min([float(len(os.sched_getaffinity(0))), *_quotas()])


def _quotas() -> Iterator[float]:
    for folder, version in resources.control_groups("cpu"):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            if int(quota) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):  # no such file, or "max"
            continue


def check_cores(examination: Examination) -> list[Finding]:
    """Threads of all workers against usable cores; with Ray the cluster's are counted instead."""
    cores, config = usable_cores(), examination.config
    if config.cluster.ray:
        return [Finding(OK, "cores", f"{cores:g} usable here; the workers use the Ray cluster's")]
    from distgnn.training.launch import local_workers, worker_threads

    workers, threads = local_workers(config), worker_threads(config)
    figure = f"{cores:g} usable, {workers} worker{'s' * (workers > 1)} of {threads} thread{'s' * (threads > 1)}"
    if workers * threads <= cores:
        return [Finding(OK, "cores", figure)]
    lower = "cluster.workers" if threads == 1 else "cluster.workers or cluster.threads_per_worker"
    return [Finding(WARN, "cores", figure, f"they would take turns: lower {lower}, or allow more cores")]


def check_memory(examination: Examination) -> list[Finding]:
    """What preparing and training state as their peaks, against what is free."""
    free = resources.available_memory()
    needs = list(_memory_needs(examination))
    figure = f"{resources.gib(free)} free"
    if not needs:
        return [Finding(OK, "memory", f"{figure}; what the run needs is told once its dataset is known")]
    text = ", ".join([figure, *(f"{what} needs up to {resources.gib(need)}" for what, need, _ in needs)])
    advice = [remedy for _, need, remedy in needs if need > free]
    if not advice:
        return [Finding(OK, "memory", text)]
    return [Finding(FAIL, "memory", text, "; ".join(advice))]


def _memory_needs(examination: Examination) -> Iterator[tuple[str, int, str]]:
    """Stage, bytes on this machine, and what to do where they are too many."""
    from distgnn.partition.prepare import estimate_bytes

    config = examination.config
    if examination.n_rows:
        need = estimate_bytes(examination.n_rows, examination.timestamps, examination.weights)
        yield "preparing", need, "prepare the dataset on a larger machine (distgnn prepare), and train with data.path"
    if examination.n_nodes and not config.cluster.ray:
        from distgnn.training.launch import local_workers

        workers = local_workers(config)
        host, _ = _training_needs(examination, examination.n_nodes, workers, config.cluster.tables != "host")
        yield "training", host.total * workers, _SMALLER


def _training_needs(examination: Examination, n_nodes: int, workers: int, tables_on_gpu: bool) -> tuple[Need, Need]:
    """What a worker takes of host memory and of its GPU's, with equal shares of the nodes."""
    from distgnn.training.memory import FeatureNeed, needs, weight_table_bytes

    config = examination.config
    gpu = config.cluster.use_gpu
    features = FeatureNeed()
    if examination.n_by_role and config.model.features:
        n_own = {role: -(-n // workers) for role, n in examination.n_by_role.items()}
        n_copies = config.cluster.n_hot(n_nodes) + config.cluster.n_cached(n_nodes)
        features = FeatureNeed.of(examination.feature_widths, n_own, n_copies)
    on_gpu = gpu and tables_on_gpu
    share = -(-n_nodes // workers)
    tables = weight_table_bytes(config, examination.n_edges, workers)
    where = {"gpu": gpu, "tables_on_gpu": on_gpu}
    return needs(config, n_nodes, share, workers, **where, features=features, weight_tables=tables)


def check_shared_memory(examination: Examination) -> list[Finding]:
    """/dev/shm, where Ray keeps its objects and NCCL its buffers."""
    config = examination.config
    needs = []
    if config.cluster.ray:
        needs.append(("Ray's object store", _OBJECT_STORE))
    if config.cluster.use_gpu and config.cluster.max_workers > 1:
        needs.append(("NCCL", _NCCL_BYTES))
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError as error:
        figure = f"{SHARED_MEMORY}: {error.strerror}"
        return [Finding(WARN, "shared memory", figure, f"mount a tmpfs there; {_HOW_TO_SHARE}")] if needs else []
    figure = f"{resources.gib(usage.free)} of {resources.gib(usage.total)} free at {SHARED_MEMORY}"
    wanted = sum(need for _, need in needs)
    if usage.free >= wanted:
        return [Finding(OK, "shared memory", figure)]
    users = " and ".join(what for what, _ in needs)
    return [Finding(WARN, "shared memory", f"{figure}, {users} want {resources.gib(wanted)}", _HOW_TO_SHARE)]


def check_disks(examination: Examination) -> list[Finding]:
    """Space left for the cache, the run and temporary files; whether the first and the last can be written."""
    config = examination.config
    findings = [
        _disk("disk, cache", storage.cache_dir(), "set DISTGNN_CACHE to a folder elsewhere"),
        _disk("disk, temporary", Path(tempfile.gettempdir()), "set TMPDIR to a folder elsewhere"),
    ]
    out = config.run.out or "runs"
    if storage.is_local(out):
        need = _checkpoint_bytes(config, examination.n_nodes) if examination.n_nodes else 0
        advice = "choose a run.out elsewhere, or lower train.keep_checkpoints"
        findings.insert(1, _disk("disk, run.out", storage.local_path(out), advice, need, write=False))
    return findings


def _checkpoint_bytes(config: Config, n_nodes: int) -> int:
    """Checkpoints on disk at the most: those kept of each phase, the best of `fit` and the one being written."""
    from distgnn.training.memory import needs

    state, _ = needs(config, n_nodes, n_nodes, 1, gpu=False, tables_on_gpu=False)
    phases = 2 if config.train.phase == "both" and not config.train.max_steps else 1
    return state.tables * (config.train.keep_checkpoints * phases + 2)


def nearest_folder(path: Path) -> Path:
    """The path itself, or the closest folder above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def _disk(what: str, path: Path, elsewhere: str, need: int = 0, write: bool = True) -> Finding:
    folder = nearest_folder(path)
    if write:
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            return Finding(FAIL, what, f"{folder} cannot be written: {error.strerror}", elsewhere)
    free = shutil.disk_usage(folder).free
    figure = f"{resources.gib(free)} free at {folder}"
    if need:
        figure += f", checkpoints need up to {resources.gib(need)}"
    if free < max(need, _FULL):
        return Finding(FAIL, what, figure, f"free some space, or {elsewhere}")
    if free < _SCARCE:
        return Finding(WARN, what, figure, f"free some space, or {elsewhere}")
    return Finding(OK, what, figure)


def check_gpus(examination: Examination) -> list[Finding]:
    """CUDA devices of this machine and their memory; a failure only where the configuration asks for them."""
    import torch

    cluster = examination.config.cluster
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}" if torch.version.cuda else ""
        figure = f"none; {built or f'torch {torch.__version__} is built for CPUs alone'}"
        if not cluster.use_gpu:
            return [Finding(OK, "GPUs", f"{figure}; cluster.use_gpu = false")]
        advice = "check nvidia-smi and the driver" if built else "install a CUDA build of torch"
        return [Finding(WARN if cluster.ray else FAIL, "GPUs", figure, f"{advice}, or set cluster.use_gpu = false")]
    memory = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
    devices = [
        f"{torch.cuda.get_device_name(index)}, {resources.gib(free)} of {resources.gib(total)} free"
        for index, (free, total) in enumerate(memory)
    ]
    figure = f"{len(devices)}: {'; '.join(devices)}"
    if cluster.use_gpu and not cluster.ray:
        if cluster.min_workers > len(devices):
            advice = f"every worker needs a device of its own: set cluster.workers to at most {len(devices)}"
            return [Finding(FAIL, "GPUs", figure, advice)]
        if examination.n_nodes:
            workers = cluster.fitting_workers(len(devices))
            _, least = _training_needs(examination, examination.n_nodes, workers, cluster.tables == "device")
            if least.total > min(free for free, _ in memory):
                figure += f"; a worker needs at least {resources.gib(least.total)}"
                instead = "set cluster.tables = auto or host, or " if cluster.tables == "device" else ""
                return [Finding(FAIL, "GPUs", figure, instead + _SMALLER)]
    return [Finding(OK, "GPUs", figure if cluster.use_gpu else f"{figure}; cluster.use_gpu = false leaves them idle")]
