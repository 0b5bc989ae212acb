"""Lists for many users in one file, streamed: chunk of users -> stable ids -> top-k -> rows of the file."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distgnn import publishing
from distgnn.config import Config
from distgnn.progress import ProgressLine
from distgnn.recommender.key_list import read_key_list
from distgnn.recommender.keys import KeyIndex
from distgnn.recommender.list_file import ENDINGS, ListFile
from distgnn.recommender.ranking import ItemFilter
from distgnn.recommender.recommender import Recommender
from distgnn.types import UserError

_CHUNK_USERS = 1 << 14
_NAMED = 3  # of the keys that are not known, in a printed line


def write_recommendations(config: Config, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Write the lists of `recommend.users` by the export of `run.path` to `run.out`.

    Args:
        config: sections run (path, out), recommend, cluster (threads_per_worker).
        log: takes one line at a time.

    Returns:
        `out`, `users` (that got a list), `rows`, `unknown` (number of users), `unknown_out` (their file, or None),
        `seconds`.

    Raises:
        UserError: no export, a wrong option or list, an output that is in use or cannot be written. Nothing is left
            half-written.
    """
    settings = config.recommend
    out, unknown_out, ending = _output(config)
    recommender = Recommender.load(config.run.path, config.cluster.threads_per_worker)
    facts = recommender.manifest
    log(
        f"{facts['dataset']}, {facts['model']}: {len(recommender.users):,} users, {len(recommender.items):,} items, "
        f"{facts['dtype']} x {facts['dim']}"
    )
    chosen = _item_filter(recommender, settings.allow, settings.block, log)
    popular = recommender.top_popular(settings.k, chosen)  # refuses a k out of range too
    users = _Users(recommender.users, settings.users)
    started = time.monotonic()
    line, done = ProgressLine(), 0
    with publishing.publish_files(out, unknown_out) as (lists_path, unknown_path):
        with ListFile(lists_path, ending, recommender.users.keys.type, recommender.items.keys.type) as file:
            for keys, stable in users:
                known = stable >= 0
                items, scores = (np.repeat(part, len(stable), axis=0) for part in popular)
                items[known], scores[known] = recommender.top_k(
                    stable[known], settings.k, filter_seen=settings.filter_seen, chosen=chosen
                )
                kept = np.flatnonzero(known | (settings.unknown == "popular"))
                file.write(keys.take(pa.array(kept)), items[kept], scores[kept], recommender.items.keys)
                done += len(kept)
                line.show(f"{done:,} users")
        if users.unknown:
            _write_unknown(unknown_path, users.unknown)
    seconds = time.monotonic() - started
    if users.repeated:
        log(f"recommend.users: {users.repeated:,} keys were given before; each user has one list")
    if users.unknown:
        also = "; they have the popular items" if settings.unknown == "popular" else ""
        log(f"recommend.users: {_unknown_line(users.unknown, 'users')}{also}; listed in {unknown_out}")
    log(f"recommendations for {done:,} users in {seconds:.1f} s, {file.rows:,} rows: {out}")
    return {
        "out": out,
        "users": done,
        "rows": file.rows,
        "unknown": len(users.unknown),
        "unknown_out": unknown_out if users.unknown else None,
        "seconds": seconds,
    }


class _Users:
    """The users to make lists for; iterate once, then ask for what was met.

    Attributes:
        unknown: keys that the run does not know, as given, each once.
        repeated: keys that were given before.
    """

    def __init__(self, index: KeyIndex, source: str) -> None:
        self._index, self._source = index, source
        self.unknown: list[str] = []
        self.repeated = 0

    def __iter__(self) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """(keys `[m]` in the kind of the run's, stable ids int64 or -1), each user once.

        An unknown key that could not be one of the run's (text among numbers) is not among them.
        """
        if not self._source:
            for start in range(0, len(self._index), _CHUNK_USERS):
                stable = np.arange(start, min(start + _CHUNK_USERS, len(self._index)))
                yield self._index.keys.slice(start, len(stable)), stable
            return
        served = np.zeros(len(self._index), np.bool_)
        strangers: set[str] = set()
        given = parsed = 0
        for keys in read_key_list(self._source, "user"):
            own = self._index.parse_all(keys)
            stable = self._index.find_all(own)
            fresh = self._first_time(keys, stable, served, strangers)
            given, parsed = given + len(keys), parsed + len(own) - own.null_count
            self.repeated += int((~fresh).sum())
            kept = np.flatnonzero(fresh & own.is_valid().to_numpy(zero_copy_only=False))
            yield own.take(pa.array(kept)), stable[kept]
        if not parsed:
            why = "none of its keys is a whole number, as the run's users are" if given else "holds no user key"
            raise UserError(f"recommend.users: {self._source}: {why}; check the list and the run")

    def _first_time(self, keys: pa.Array, stable: np.ndarray, served: np.ndarray, strangers: set[str]) -> np.ndarray:
        """Bool `[m]`: which keys are met for the first time."""
        fresh = np.zeros(len(stable), np.bool_)
        known = np.flatnonzero(stable >= 0)
        first = known[np.unique(stable[known], return_index=True)[1]]
        fresh[first] = ~served[stable[first]]
        served[stable[known]] = True
        for at in np.flatnonzero(stable < 0):
            key = str(keys[int(at)].as_py())
            if key not in strangers:
                strangers.add(key)
                self.unknown.append(key)
                fresh[at] = True
        return fresh


def _item_filter(recommender: Recommender, allow: str, block: str, log: Callable[[str], None]) -> ItemFilter:
    allowed = _known_items(recommender.items, allow, "allow", log) if allow else None
    blocked = _known_items(recommender.items, block, "block", log) if block else None
    if allowed is not None and not len(allowed):
        raise UserError(f"recommend.allow: {allow}: holds no item that the run knows; check the list and the run")
    return ItemFilter(allowed, blocked)


def _known_items(index: KeyIndex, source: str, option: str, log: Callable[[str], None]) -> np.ndarray:
    """Distinct stable items of a list, int64, ascending; says which are not known."""
    ids: list[np.ndarray] = [np.empty(0, np.int64)]
    unknown: list[str] = []
    for keys in read_key_list(source, "item"):
        found = index.find_all(index.parse_all(keys))
        ids.append(found[found >= 0])
        unknown += [str(keys[int(at)].as_py()) for at in np.flatnonzero(found < 0)]
    if unknown:
        log(f"recommend.{option}: {_unknown_line(unknown, 'items')}")
    return np.unique(np.concatenate(ids))


def _unknown_line(keys: list[str], what: str) -> str:
    named = ", ".join(keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")
    return f"{len(keys):,} {what} not known to the run: {named}"


def _write_unknown(path: Path, keys: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([["user"], *([key] for key in keys)])


def _output(config: Config) -> tuple[str, str, str]:
    """The output's URI, that of the list of unknown users, and the ending."""
    if not config.run.path:
        raise UserError("recommend: name a run (--run RUN)")
    out = config.run.out
    if not out:
        raise UserError("recommend: name the file to write (--out FILE.parquet or FILE.csv)")
    ending = next((e for e in ENDINGS if out.lower().endswith(e)), None)
    if ending is None:
        raise UserError(f"run.out = {out!r} must end in {' or '.join(ENDINGS)}")
    return out, out[: -len(ending)] + ".unknown.csv", ending
