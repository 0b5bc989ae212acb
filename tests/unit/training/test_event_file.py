from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distgnn.training.event_file import EventFile
from distgnn.types import UserError


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "tensorboard")
    events.add({"fit/loss": 1.5, "fit/ndcg@20": 0.25}, 50)
    events.add({"fit/loss": 1.25}, 100)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert sorted(read.Tags()["scalars"]) == ["fit/loss", "fit/ndcg@20"]
    assert [(e.step, e.value) for e in read.Scalars("fit/loss")] == [(50, 1.5), (100, 1.25)]
    assert [(e.step, e.value) for e in read.Scalars("fit/ndcg@20")] == [(50, 0.25)]


def test_a_folder_that_cannot_be_made_is_a_mistake_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        EventFile(tmp_path / "file" / "tensorboard")
