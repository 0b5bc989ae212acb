"""What this process has of its machine: memory that is free and used, the control groups that limit it."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_PROC = Path("/proc")
# Limit, usage, and the line of memory.stat that counts reclaimable cache.
_V2_NAMES = ("memory.max", "memory.current", "inactive_file")
_V1_NAMES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has free, or the tightest control group above it."""
    return max(min([_machine_available(), *_cgroup_available()]), 0)


def peak_memory() -> int:
    """Most resident memory of this process so far, in bytes.

    Not getrusage's maximum: that one starts at what the parent held when it started this process.
    """
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def killed_for_memory() -> int:
    """Processes of this machine that the system has killed for want of memory, since it started."""
    counts = dict(line.split() for line in _lines(_PROC / "vmstat"))
    return int(counts.get("oom_kill", 0))


def _machine_available() -> int:
    for line in (_PROC / "meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise AssertionError("/proc/meminfo has no MemAvailable")


def control_groups(controller: str) -> Iterator[tuple[Path, int]]:
    """Folders of the control groups from the process's own to the root, each with its version, 1 or 2.

    Args:
        controller: `memory`, `cpu`, ...: what the groups of version 1 are mounted by.
    """
    for line in _lines(_PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, version = _CGROUP, 2
        elif controller in controllers.split(","):
            root, version = _CGROUP / controller, 1
        else:
            continue
        own = root / path.lstrip("/")
        for folder in [own, *own.parents]:
            yield folder, version
            if folder == root:
                break


def _cgroup_available() -> Iterator[int]:
    """What each control group leaves; reclaimable cache counts as free."""
    for folder, version in control_groups("memory"):
        limit, usage, cache = _V2_NAMES if version == 2 else _V1_NAMES
        yield from _left(folder / limit, folder / usage, folder / "memory.stat", cache)


def _left(limit: Path, usage: Path, stat: Path, cache: str) -> Iterator[int]:
    try:
        most, used = int(limit.read_text()), int(usage.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return
    reclaimable = next((int(line.split()[1]) for line in _lines(stat) if line.split()[0] == cache), 0)
    yield most - used + min(reclaimable, used)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def gib(nbytes: int) -> str:
    """Bytes in words: `1.50 GiB`, or `12.3 MiB` below a hundredth of one."""
    if nbytes < 2**30 / 100:
        return f"{nbytes / 2**20:.1f} MiB"
    return f"{nbytes / 2**30:.2f} GiB"
