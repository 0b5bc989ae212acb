from __future__ import annotations

from pathlib import Path

import pytest

from distgnn import resources


def test_available_memory_is_the_tightest_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(resources, "_CGROUP", tmp_path / "cgroup")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert resources.available_memory() == 8000 << 10
    (tmp_path / "proc" / "self" / "cgroup").write_text("4:cpu:/\n0::/a/b\n")
    inner = tmp_path / "cgroup" / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("1\n")
    assert resources.available_memory() == 8000 << 10
    (inner.parent / "memory.max").write_text("1000000\n")
    (inner.parent / "memory.current").write_text("400000\n")
    (inner.parent / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    assert resources.available_memory() == 650_000
    (tmp_path / "proc" / "self" / "cgroup").write_text("4:cpu,memory:/gone/elsewhere\n")
    first = tmp_path / "cgroup" / "memory"
    first.mkdir()
    (first / "memory.limit_in_bytes").write_text("500000")
    (first / "memory.usage_in_bytes").write_text("600000")
    assert resources.available_memory() == 0


def test_processes_killed_for_memory_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PROC", tmp_path)
    assert resources.killed_for_memory() == 0
    (tmp_path / "vmstat").write_text("nr_free_pages 12\noom_kill 3\npgfault 7\n")
    assert resources.killed_for_memory() == 3


def test_gib() -> None:
    assert resources.gib(3 * 2**29) == "1.50 GiB"
    assert resources.gib(2**20) == "1.0 MiB"
