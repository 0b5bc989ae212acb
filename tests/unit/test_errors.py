"""What the system refuses is told from other mistakes, and said with figures."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from distgnn import publishing
from distgnn.errors import is_out_of_memory, space_facts, system_refusal
from distgnn.types import UserError

PETABYTE = 1 << 50


def test_memory_that_is_refused_is_recognised_whoever_asks() -> None:
    requests = [
        lambda: np.ones(PETABYTE, np.uint8),
        lambda: torch.empty(PETABYTE, dtype=torch.uint8),
        lambda: pa.allocate_buffer(PETABYTE),
        lambda: bytearray(PETABYTE),
    ]
    for request in requests:
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            request()
        assert is_out_of_memory(caught.value)
        said = system_refusal(caught.value, "worker 1, fit step 3", "take less")
        assert str(said).startswith("worker 1, fit step 3: out of memory: ")
        assert str(said).endswith("; take less")
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a matmul primitive"))
    assert system_refusal(RuntimeError("shapes do not match")) is None
    assert system_refusal(OSError(errno.EIO, "Input/output error")) is None


def test_no_space_says_how_much_was_wanted_and_is_free(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "file"))
    facts = space_facts(full, tmp_path / "not" / "there", 5000)
    assert facts.startswith(" (5,000 bytes wanted, ")
    assert facts.endswith(" free); free some space or write elsewhere")
    assert space_facts(OSError(errno.EACCES, "Permission denied"), tmp_path, 5000) == ""
    said = str(system_refusal(full))
    assert said.startswith(f"{tmp_path}/file: cannot be written: No space left on device (")


def test_a_limit_on_file_sizes_is_a_full_disk_too(tmp_path: Path) -> None:
    script = f"from distgnn import storage; storage.write_bytes({str(tmp_path / 'out' / 'file')!r}, bytes(1 << 20))"
    result = subprocess.run(
        [sys.executable, "-c", script],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19)),
        capture_output=True,
        text=True,
        check=False,
    )
    last = result.stderr.splitlines()[-1]
    assert "file: cannot be written: File too large (1.0 MiB wanted); raise the limit on the size of a file" in last
    assert os.listdir(tmp_path / "out") == []


def test_what_is_gathered_for_a_remote_store_names_the_local_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=rf"{tmp_path}/uploads \(where memory://x/y is gathered\): cannot be written"):
        _publish_on_a_full_disk("memory://x/y")
    assert not list(tmp_path.rglob("*.partial-*"))


def _publish_on_a_full_disk(uri: str) -> None:
    with publishing.publish_directory(uri):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
