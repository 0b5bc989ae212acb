"""Whether files are still what they were when they were checked or mapped: a mapped file that changes changes a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distgnn import storage
from distgnn.types import UserError

_REMEDY = "restore it, or prepare the dataset again, and go on with --resume: checkpoints from before it are sound"


@dataclass
class _Known:
    """A file: its URI, what the manifest says of it, and its inode, size and time of change when it was sound."""

    uri: str
    facts: dict[str, Any]
    mark: tuple[int, int, int]


class FilesInUse:
    """Local files, or local copies of remote ones, with what the system said of them at first."""

    def __init__(self) -> None:
        self._known: dict[Path, _Known] = {}

    def note(self, path: Path, uri: str, facts: dict[str, Any]) -> None:
        """Remember a file as it is now; one that is remembered, or not there, is passed over.

        Args:
            uri: whose copy it is. facts: the manifest's `bytes` and `sha256`.
        """
        if path not in self._known and (mark := _mark(path)) is not None:
            self._known[path] = _Known(uri, facts, mark)

    def change(self) -> str:
        """The first file that is not what it was, in words; empty: all are.

        Costs a stat a file. One that was only touched, or replaced by its equal, is read once and is as good.
        """
        for path, known in self._known.items():
            mark = _mark(path)
            if mark == known.mark:
                continue
            if mark is None:
                return f"{known.uri}: has gone while it was in use; {_REMEDY}"
            size, expected = mark[1], int(known.facts["bytes"])
            if size != expected:
                return f"{known.uri}: has {size} bytes instead of {expected}: cut or grown while in use; {_REMEDY}"
            if storage.sha256_of(str(path)) != known.facts["sha256"]:
                return f"{known.uri}: altered while it was in use (its sha256 is not the manifest's); {_REMEDY}"
            known.mark = mark
        return ""

    def refuse_change(self) -> None:
        """Stop where a file is not what it was.

        Raises:
            UserError: naming the file.
        """
        if change := self.change():
            raise UserError(change)


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
