"""Whatever is stopped, damaged and gone on with: a trainer stands where one that was never disturbed stood."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distgnn.distributed.process_group import WorkerGroup
from distgnn.training.checkpoint import choose_checkpoint
from distgnn.training.trainer import PhaseTrainer
from distgnn.types import UserError
from tests.small_training import batch_of, small_config, small_graph, small_trainer

GRAPH = small_graph(5)
CONFIG = small_config("optim.name=adam", "model.encoder=graphsage", "model.dropout=0.2", "train.keep_checkpoints=99")
FILES = ("shard-0000.safetensors", "dense.safetensors", "manifest.json")
ACTIONS = st.lists(
    st.one_of(st.tuples(st.just("train"), st.integers(1, 4)), st.tuples(st.just("damage"), st.sampled_from(FILES))),
    max_size=7,
)


@pytest.fixture(scope="module")
def group() -> Iterator[WorkerGroup]:
    group = WorkerGroup.join(0, 1)
    yield group
    group.leave()


def advance(trainer: PhaseTrainer, steps: int) -> Iterator[None]:
    for _ in range(steps):
        trainer.train_step(batch_of(trainer, trainer.step))
        trainer.step += 1
        yield


def state(trainer: PhaseTrainer) -> list[torch.Tensor]:
    tensors = [trainer.embedding.weight, *trainer.embedding.moments, *trainer.model.state_dict().values()]
    return [tensor.clone() for tensor in tensors]


@pytest.fixture(scope="module")
def undisturbed(group: WorkerGroup, tmp_path_factory: pytest.TempPathFactory) -> list[list[torch.Tensor]]:
    """State after every number of steps."""
    trainer = small_trainer(CONFIG, tmp_path_factory.mktemp("whole"), GRAPH, group)
    return [state(trainer), *(state(trainer) for _ in advance(trainer, 28))]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_resuming(
    group: WorkerGroup, undisturbed: list[list[torch.Tensor]], actions: list[tuple[str, int | str]]
) -> None:
    intact: dict[int, bool] = {}  # by step of the checkpoints that are there
    with tempfile.TemporaryDirectory() as folder:
        for action, detail in [*actions, ("train", 1)]:
            if action == "damage":
                if intact:
                    newest = max(intact)
                    (Path(folder) / "checkpoints" / f"step-{newest:08d}-fit" / str(detail)).write_bytes(b"damaged")
                    intact[newest] = False
                continue
            trainer = small_trainer(CONFIG, Path(folder), GRAPH, group)
            if intact and not any(intact.values()):
                with pytest.raises(UserError, match="none of its checkpoints is intact"):
                    choose_checkpoint(folder, group)
                return
            chosen, faults = choose_checkpoint(folder, group)
            assert (chosen.step if chosen else 0) == max((s for s, whole in intact.items() if whole), default=0)
            assert len(faults) == sum(step > (chosen.step if chosen else 0) for step in intact)
            if chosen is not None:
                trainer.resume(chosen)
            for _ in advance(trainer, int(detail)):
                for got, expected in zip(state(trainer), undisturbed[trainer.step], strict=True):
                    assert torch.equal(got, expected)
            trainer.save()
            intact = {step: whole for step, whole in intact.items() if step < trainer.step} | {trainer.step: True}
