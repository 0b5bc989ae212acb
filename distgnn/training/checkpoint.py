"""Checkpoints by stable id: dense state, one shard file a worker, manifest last; loads at any number of workers.

RUN/checkpoints/step-<n>-<phase>/ holds dense.safetensors (parameters and optimizer state), shard-<rank>.safetensors
(`node_type`, `stable_id`, `weight`, `moment0`, `moment1`) and manifest.json with their sha256.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
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

FORMAT_VERSION = 1


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint that has a manifest.

    Attributes:
        uri: its folder. step: steps done in the phase. phase: fit or full. manifest: all of it.
    """

    uri: str
    step: int
    phase: str
    manifest: dict[str, Any]


def list_checkpoints(run: str) -> list[CheckpointInfo]:
    """Finished checkpoints of a run, oldest first (fit before full)."""
    folder = storage.join(run, "checkpoints")
    if not storage.exists(folder):
        return []
    fs, path = storage.filesystem(folder)
    found = []
    for entry in fs.ls(path, detail=False):
        uri = storage.join(folder, entry.rstrip("/").rsplit("/", 1)[-1])
        if storage.exists(storage.join(uri, "manifest.json")):
            manifest = storage.read_json(storage.join(uri, "manifest.json"))
            found.append(CheckpointInfo(uri, manifest["step"], manifest["phase"], manifest))
    return sorted(found, key=lambda c: (c.phase == "full", c.step))


def remove_checkpoint(info: CheckpointInfo) -> None:
    """Delete a checkpoint, its manifest first."""
    fs, path = storage.filesystem(info.uri)
    fs.rm_file(storage.join(path, "manifest.json"))
    if storage.is_local(info.uri):
        shutil.rmtree(storage.local_path(info.uri), ignore_errors=True)
    else:
        fs.rm(path, recursive=True)


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
    tensors = {
        "node_type": torch.from_numpy(own.node_type),
        "stable_id": torch.from_numpy(own.stable_id),
        "weight": embedding.weight.cpu(),
        **{f"moment{i}": m.cpu() for i, m in enumerate(embedding.moments)},
    }
    files = {f"shard-{group.rank:04d}.safetensors": save_tensors(tensors)}
    if group.rank == 0:
        dense = {f"model.{k}": v.cpu().contiguous() for k, v in model.state_dict().items()}
        dense.update(_optimizer_tensors(optimizer))
        files["dense.safetensors"] = save_tensors(dense)
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
        storage.write_json(storage.join(uri, "manifest.json"), manifest)
    group.barrier()


def _read(info: CheckpointInfo, name: str) -> dict[str, torch.Tensor]:
    content = storage.read_bytes(storage.join(info.uri, name))
    if hashlib.sha256(content).hexdigest() != info.manifest["files"][name]:
        raise UserError(
            f"{info.uri}/{name}: altered or truncated (its sha256 is not the manifest's); remove this checkpoint"
        )
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
