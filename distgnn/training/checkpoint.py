"""Checkpoints by stable id: dense state, one shard file a worker, manifest last; loads at any number of workers.

RUN/checkpoints/step-<n>-<phase>/ holds dense.safetensors (parameters and optimizer state), shard-<rank>.safetensors
(`node_type`, `stable_id`, `weight`, `moment0`, `moment1`) and manifest.json with their sha256 and its own. `unfinished`
is there while the others are being written: a folder with it and without a manifest is what a stop has left.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from distgnn import storage
from distgnn.distributed.embedding import ShardedEmbedding
from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from distgnn.training.inference import OwnNodes
from distgnn.types import UserError

FORMAT_VERSION = 2
_UNFINISHED = "unfinished"
_FOLDER = re.compile(r"step-(\d+)-(fit|full)")


@dataclass(frozen=True)
class CheckpointFolder:
    """A checkpoint's folder, whatever its state.

    Attributes:
        uri: of the folder. step: steps done in the phase. phase: fit or full.
    """

    uri: str
    step: int
    phase: str

    @property
    def name(self) -> str:
        """The folder's last component."""
        return self.uri.rsplit("/", 1)[-1]

    @property
    def order(self) -> tuple[bool, int]:
        """Later checkpoints of a run are greater (full comes after fit)."""
        return self.phase == "full", self.step


@dataclass(frozen=True)
class CheckpointInfo(CheckpointFolder):
    """A checkpoint with a sound manifest.

    Attributes:
        manifest: all of it.
    """

    manifest: dict[str, Any]


def checkpoint_folders(run: str) -> list[CheckpointFolder]:
    """Folders of a run's checkpoints, whatever their state, oldest first."""
    folder = storage.join(run, "checkpoints")
    found = []
    for name in storage.names_in(folder):
        match = _FOLDER.fullmatch(name)
        if match:
            found.append(CheckpointFolder(storage.join(folder, name), int(match[1]), match[2]))
    return sorted(found, key=lambda c: c.order)


def list_checkpoints(run: str) -> list[CheckpointInfo]:
    """A run's checkpoints with sound manifests, oldest first; their other files are not looked at."""
    found = []
    for folder in checkpoint_folders(run):
        with suppress(_DamagedError):
            found.append(_open(folder))
    return found


def choose_checkpoint(
    run: str, group: WorkerGroup, only: tuple[str, int] | None = None
) -> tuple[CheckpointInfo | None, list[str]]:
    """The newest intact checkpoint of a run, every file's hash compared; a collective, the same at every worker.

    Args:
        only: phase and step of the one to look at, where no other will do.

    Returns:
        The checkpoint, None where none was ever finished; and a line for each newer one that is not intact.

    Raises:
        UserError: all that were finished are damaged (not with `only`), or the store cannot be read; at every worker.
    """
    answer: dict[str, Any] = {}
    if group.rank == 0:
        try:
            answer = _choose(run, only)
        except UserError as error:
            answer = {"error": str(error)}
    answer = json.loads(group.share_text(json.dumps(answer)))
    if "error" in answer:
        raise UserError(answer["error"])
    chosen = answer["chosen"]
    return CheckpointInfo(**chosen) if chosen else None, answer["faults"]


def _choose(run: str, only: tuple[str, int] | None) -> dict[str, Any]:
    """What `choose_checkpoint` tells the workers."""
    faults, finished = [], False
    for folder in reversed(checkpoint_folders(run)):
        if only is not None and (folder.phase, folder.step) != only:
            continue
        try:
            info = _open(folder)
            _verify(info)
        except _DamagedError as error:
            faults.append(str(error))
            finished |= error.finished
        else:
            return {"chosen": vars(info), "faults": [f"{fault}: {info.name} is taken instead" for fault in faults]}
    if finished and only is None:
        raise UserError(
            f"{run}: none of its checkpoints is intact ({'; '.join(faults)}): restore the files, or choose another "
            "run.out to train from the start"
        )
    return {"chosen": None, "faults": [f"{fault}: no checkpoint was finished before it" for fault in faults]}


class _DamagedError(UserError):
    """Not a whole checkpoint; `finished`: it was one."""

    def __init__(self, message: str, *, finished: bool = True) -> None:
        super().__init__(message)
        self.finished = finished


def _open(folder: CheckpointFolder) -> CheckpointInfo:
    """The checkpoint in a folder; its manifest is sound."""
    uri = storage.join(folder.uri, storage.MANIFEST)
    if not storage.exists(uri):
        written = [name for name in storage.names_in(folder.uri) if not name.startswith(".")]
        if not written or _UNFINISHED in written:  # a stop may come before the first file is whole
            raise _DamagedError(f"{folder.uri}: was being written when the run stopped", finished=False)
        raise _DamagedError(f"{uri}: missing")
    content = storage.read_bytes(uri)
    try:
        manifest = json.loads(content)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("sha256") != _own_hash(manifest):
        raise _DamagedError(f"{uri}: altered or truncated, or written by another version of distgnn")
    if manifest["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{uri}: of format {manifest['format_version']}, this distgnn reads {FORMAT_VERSION}; "
            "use the version that wrote it"
        )
    return CheckpointInfo(folder.uri, folder.step, folder.phase, manifest)


def _own_hash(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _verify(info: CheckpointInfo) -> None:
    """Refuse a checkpoint with a file that is missing, truncated or altered."""
    for name, digest in sorted(info.manifest["files"].items()):
        uri = storage.join(info.uri, name)
        if not storage.exists(uri):
            raise _DamagedError(f"{uri}: missing")
        if storage.sha256_of(uri) != digest:
            raise _DamagedError(f"{uri}: altered or truncated (its sha256 is not the manifest's)")


def remove_checkpoint(folder: CheckpointFolder) -> None:
    """Delete a checkpoint, its manifest first."""
    fs, path = storage.filesystem(folder.uri)
    with suppress(FileNotFoundError):
        fs.rm_file(storage.join(path, storage.MANIFEST))
    if storage.is_local(folder.uri):
        shutil.rmtree(storage.local_path(folder.uri), ignore_errors=True)
    else:
        fs.invalidate_cache()
        with suppress(FileNotFoundError):
            fs.rm(path, recursive=True)


def remove_unfinished(run: str) -> None:
    """Delete checkpoints that were being written when a run stopped; none of its workers may be left."""
    for folder in checkpoint_folders(run):
        unfinished, manifest = (storage.join(folder.uri, name) for name in (_UNFINISHED, storage.MANIFEST))
        if storage.exists(unfinished) and not storage.exists(manifest):
            remove_checkpoint(folder)


def _serialized(tensors: dict[str, torch.Tensor]) -> bytes:
    """Tensors as the content of a safetensors file.

    The serializer ends the process where it gets no memory, for the content and a copy of it: it is asked for here
    first, where that is an error.
    """
    torch.empty(2 * sum(tensor.nbytes for tensor in tensors.values()), dtype=torch.uint8)
    return bytes(save_tensors(tensors))


def _optimizer_tensors(optimizer: torch.optim.Optimizer | None) -> Iterator[tuple[str, torch.Tensor]]:
    if optimizer is None:
        return
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                yield f"optimizer.{index}.{key}", torch.as_tensor(value).cpu().contiguous()


def save_checkpoint(
    run: str,
    phase: str,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    embedding: ShardedEmbedding,
    own: OwnNodes,
    group: WorkerGroup,
    facts: dict[str, Any],
) -> None:
    """Write one checkpoint; a collective. `facts` (JSON) go into the manifest: dataset hash, schedule state, model."""
    uri = storage.join(run, "checkpoints", f"step-{step:08d}-{phase}")
    if group.rank == 0:
        remove_checkpoint(CheckpointFolder(uri, step, phase))  # a damaged one, or one with more shards
        storage.write_bytes(storage.join(uri, _UNFINISHED), b"")
    group.barrier()
    tensors = {
        "node_type": torch.from_numpy(own.node_type),
        "stable_id": torch.from_numpy(own.stable_id),
        "weight": embedding.weight.cpu(),
        **{f"moment{i}": m.cpu() for i, m in enumerate(embedding.moments)},
    }
    files = {f"shard-{group.rank:04d}.safetensors": _serialized(tensors)}
    if group.rank == 0:
        dense = {f"model.{k}": v.cpu().contiguous() for k, v in model.state_dict().items()}
        dense.update(_optimizer_tensors(optimizer))
        files["dense.safetensors"] = _serialized(dense)
    digests = np.zeros((len(files), 64 + 40), np.uint8)
    for i, (name, content) in enumerate(files.items()):
        storage.write_bytes(storage.join(uri, name), content)
        digest = hashlib.sha256(content).hexdigest()
        digests[i] = np.frombuffer(f"{digest}{name:<40}".encode(), np.uint8)
    gathered = group.gather_arrays(digests)
    if gathered is not None:
        lines = [bytes(row).decode() for row in np.concatenate(gathered)]
        manifest = {
            "format_version": FORMAT_VERSION,
            "phase": phase,
            "step": step,
            "optimizer": embedding.optim.name,
            "files": {line[64:].strip(): line[:64] for line in lines},
            **facts,
        }
        manifest = json.loads(json.dumps(manifest))  # as a reader sees it, for the hash
        storage.write_json(storage.join(uri, storage.MANIFEST), {**manifest, "sha256": _own_hash(manifest)})
        storage.remove_file(storage.join(uri, _UNFINISHED))
    group.barrier()


def _read(info: CheckpointInfo, name: str) -> dict[str, torch.Tensor]:
    content = storage.read_bytes(storage.join(info.uri, name))
    if hashlib.sha256(content).hexdigest() != info.manifest["files"][name]:
        raise UserError(f"{info.uri}/{name}: altered or truncated (its sha256 is not the manifest's)")
    try:
        result: dict[str, torch.Tensor] = load_tensors(content)
    except SafetensorError as error:
        raise UserError(f"{info.uri}/{name}: not a safetensors file ({error}); remove this checkpoint") from error
    return result


def load_checkpoint(
    info: CheckpointInfo,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    embedding: ShardedEmbedding,
    topology: Topology,
    dataset_hash: str,
) -> None:
    """Fill the model, its optimizer and a worker's own rows and replicas from all shards.

    `dataset_hash` is `PreparedDataset.data_hash`: rows are by stable id, so any partitioning of the same data will do.

    Raises:
        UserError: altered or missing file, a checkpoint of another dataset, other widths or another optimizer.
    """
    if info.manifest["dataset_hash"] != dataset_hash:
        raise UserError(
            f"{info.uri}: the checkpoint belongs to another dataset ({info.manifest['dataset']}); "
            "give data.path or data.name of the one that it was trained on"
        )
    optim = embedding.optim.name
    if info.manifest["optimizer"] != optim:
        raise UserError(
            f"{info.uri}: was trained with optim.name = {info.manifest['optimizer']}, now {optim}, which keeps another "
            "state; set it back, or choose another run.out"
        )
    missing = np.ones(embedding.n_rows, bool)
    n_users = topology.n_users
    for name in sorted(n for n in info.manifest["files"] if n.startswith("shard-")):
        shard = _read(info, name)
        if shard["weight"].shape[1] != embedding.weight.shape[1]:
            raise UserError(
                f"{info.uri}: rows of width {shard['weight'].shape[1]}, but model.dim = {embedding.weight.shape[1]}"
            )
        stable = shard["node_type"].numpy().astype(np.int64) * n_users + shard["stable_id"].numpy()
        node = np.asarray(topology.node_id, np.int64)[stable]
        row = embedding.local_rows(node)
        mine = np.flatnonzero(row >= 0)
        source = torch.from_numpy(mine)
        moments = [shard[f"moment{i}"][source] for i in range(embedding.optim.n_moments())]
        embedding.put(row[mine], shard["weight"][source], moments)
        missing[row[mine]] = False
    if missing.any():
        raise UserError(f"{info.uri}: {int(missing.sum())} nodes have no row in any shard; remove this checkpoint")
    _load_dense(_read(info, "dense.safetensors"), info, model, optimizer)


def _load_dense(
    dense: dict[str, torch.Tensor], info: CheckpointInfo, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> None:
    try:
        model.load_state_dict({k[6:]: v for k, v in dense.items() if k.startswith("model.")})
    except RuntimeError as error:
        raise UserError(f"{info.uri}: the checkpoint's model is not the configured one: {error}") from error
    if optimizer is not None:
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in dense.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
