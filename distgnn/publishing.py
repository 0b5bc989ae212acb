"""Outputs that are filled out of sight and published when they are whole, wherever they go (any fsspec URI)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distgnn.storage import (
    MANIFEST,
    filesystem,
    is_local,
    join,
    local_path,
    reading,
    scratch_folder,
    unwritten,
    writing,
)
from distgnn.types import UserError


@contextmanager
def publish_directory(uri: str) -> Iterator[Path]:
    """Fill a folder out of sight and publish it in one step.

    Yields a local staging folder. On a clean exit a local one is renamed to its target; a remote one is uploaded,
    `manifest.json` last, so that readers who ask for the manifest see all or nothing. On any error it is removed. A
    killed process leaves at most a hidden `.<name>.partial-*` beside the target, removed when the target is next
    published.

    Raises:
        UserError: the target is in use (a file, or a folder with something in it), or can't be written.
    """
    refuse_used(uri)
    with scratch_folder(uri) as staging:
        yield staging
        if is_local(uri):
            _rename_into_place(staging, local_path(uri), uri)
        else:
            _upload(staging, uri)


@contextmanager
def publish_files(*uris: str) -> Iterator[list[Path]]:
    """Fill files out of sight and publish them when all are whole: all or none.

    Yields a local path for each; those that are not written are not published. On any error nothing stays.

    Raises:
        UserError: a target is there already, or can't be written.
    """
    for uri in uris:
        refuse_used_file(uri)
    sent: list[str] = []
    with scratch_folder(uris[0]) as staging:
        paths = [staging / str(number) for number in range(len(uris))]
        yield paths
        try:
            for uri, path in zip(uris, paths, strict=True):
                if path.exists():
                    sent.append(uri)
                    _publish_file(path, uri)
        except BaseException:
            for uri in sent:
                found, target = filesystem(uri)
                with suppress(Exception):
                    found.rm_file(target)
            raise


@contextmanager
def replace_file(uri: str) -> Iterator[Path]:
    """Fill a file out of sight and publish it when it is whole, in place of one that is there; not at all on an error.

    Raises:
        UserError: can't be written.
    """
    with scratch_folder(uri) as staging:
        yield staging / "content"
        _publish_file(staging / "content", uri)


def _publish_file(path: Path, uri: str) -> None:
    with writing(uri):
        if is_local(uri):
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
            local_path(uri).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, local_path(uri))
        else:
            found, target = filesystem(uri)
            found.put_file(str(path), target)


def refuse_used_file(uri: str) -> None:
    """Refuse an output file that is there already."""
    found, path = filesystem(uri)
    with reading(uri):
        found.invalidate_cache()
        used = found.exists(path)
    if used:
        raise UserError(f"output file {uri} is in use: choose another run.out or remove it")


def refuse_used(uri: str) -> None:
    """Refuse an output folder that already holds something."""
    found, path = filesystem(uri)
    with reading(uri):
        found.invalidate_cache()
        used = found.isfile(path) or (found.isdir(path) and bool(found.ls(path, detail=False)))
    if used:
        raise _in_use(uri)


def _in_use(uri: str) -> UserError:
    return UserError(f"output folder {uri} is in use: choose another run.out or remove it")


def _rename_into_place(staging: Path, target: Path, uri: str) -> None:
    try:
        os.rename(staging, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _in_use(uri) from error
        raise unwritten(uri, error, target.parent) from error


def _upload(staging: Path, uri: str) -> None:
    found, root = filesystem(uri)
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    files.sort(key=lambda path: path == staging / MANIFEST)
    sent: list[str] = []
    try:
        with writing(uri):
            for file in files:
                target = join(root, file.relative_to(staging).as_posix())
                found.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
                sent.append(target)
                found.put_file(str(file), target)
    except BaseException:
        for target in reversed(sent):
            with suppress(Exception):
                found.rm_file(target)
        raise
