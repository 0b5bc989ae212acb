"""Configurations from TOML files, overrides and dictionaries; what is wrong in them in one line."""

from __future__ import annotations

import difflib
import sys
import types
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

from distgnn.config import Config
from distgnn.types import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10
    import tomli as tomllib

_COUNT_OR_LIST = int | tuple[int, ...]


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _coerce(where: str, annotation: Any, value: Any) -> Any:
    """Check a TOML value against a field's type; ints pass as floats, lists as tuples."""
    if annotation == _COUNT_OR_LIST:
        annotation = int if isinstance(value, int) else tuple[int, ...]
    if typing.get_origin(annotation) is tuple:
        element = typing.get_args(annotation)[0]
        if isinstance(value, str):
            value = [part for part in value.split(",") if part]
        if not isinstance(value, (list, tuple)):
            value = [value]
        return tuple(_coerce(where, element, v) for v in value)
    if isinstance(annotation, types.UnionType):
        kinds = typing.get_args(annotation)
        annotation = type(value) if type(value) in kinds else kinds[0]
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation is str and isinstance(value, Path):
        return str(value)
    if type(value) is not annotation:
        raise UserError(f"config: {where} = {value!r} must be of type {annotation.__name__}")
    return value


def config_from_dict(values: dict[str, Any], where: str = "config") -> Config:
    """Build a Config from nested dictionaries; an unknown section or key is refused with the nearest known one."""
    sections = {f.name: f for f in fields(Config)}
    built: dict[str, Any] = {}
    for name, content in values.items():
        if name not in sections:
            raise UserError(f"{where}: unknown section [{name}]{_nearest(name, list(sections))}")
        if not isinstance(content, dict):
            raise UserError(f"{where}: {name} must be a section, [{name}], with keys of its own")
        section_class = typing.get_type_hints(Config)[name]
        hints = typing.get_type_hints(section_class)
        known = [f.name for f in fields(section_class)]
        for key in content:
            if key not in known:
                raise UserError(f"{where}: unknown key {name}.{key}{_nearest(key, known)}")
        built[name] = section_class(**{k: _coerce(f"{name}.{k}", hints[k], v) for k, v in content.items()})
    return Config(**built)


def _apply_overrides(values: dict[str, Any], overrides: list[str]) -> None:
    for text in overrides:
        key, equals, raw = text.partition("=")
        section, dot, name = key.strip().partition(".")
        if not equals or not dot or not name:
            raise UserError(f"--set {text}: write it as section.key=value")
        raw = raw.strip()
        try:
            value = tomllib.loads(f"v = {raw}")["v"]
        except tomllib.TOMLDecodeError:
            value = raw
        annotation = _field_type(section, name)
        if annotation is str and not isinstance(value, str):
            value = raw
        is_list = typing.get_origin(annotation) is tuple or annotation == _COUNT_OR_LIST
        if is_list and isinstance(value, str):
            value = _parse_list(value)
        values.setdefault(section, {})[name] = value


def _parse_list(text: str) -> list[Any]:
    """`5,5` and `toppop,als`: a list without brackets."""
    try:
        values: list[Any] = tomllib.loads(f"v = [{text}]")["v"]
        return values
    except tomllib.TOMLDecodeError:
        return [part.strip() for part in text.split(",") if part.strip()]


def _field_type(section: str, name: str) -> Any:
    section_class = typing.get_type_hints(Config).get(section)
    return typing.get_type_hints(section_class).get(name) if section_class else None


def load_config(path: str | Path | None = None, overrides: list[str] | None = None) -> Config:
    """Read a TOML file (or the defaults) and apply overrides.

    Raises:
        UserError: unreadable file, bad TOML (with its line), unknown section or key, value of the wrong type or range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"config: cannot read {path}: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"config: {path} is not valid TOML: {error}") from error
    _apply_overrides(values, overrides or [])
    return config_from_dict(values, where=str(path) if path is not None else "config")
