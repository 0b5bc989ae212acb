"""Every option with its default, meaning and allowed values, read from `config.py` itself: one definition of each."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distgnn import config

_CHECKS = {"_one_of", "_at_least", "_between"}


@dataclass(frozen=True)
class Option:
    """One key of the configuration.

    Attributes:
        section, key: its place. kind: its type in words. default: as TOML.
        meaning: the comment beside the field. allowed: values or range, in words, or empty.
    """

    section: str
    key: str
    kind: str
    default: str
    meaning: str
    allowed: str


@functools.cache
def sections() -> dict[str, tuple[str, list[Option]]]:
    """Section name to (what it is about, its options), in order."""
    return {
        name: (inspect.getdoc(section) or "", _options(name, section))
        for name, section in typing.get_type_hints(config.Config).items()
    }


def _options(name: str, section: type) -> list[Option]:
    source = textwrap.dedent(inspect.getsource(section))
    lines = source.splitlines()
    hints = typing.get_type_hints(section)
    allowed = _allowed(source)
    place = {
        node.target.id: node.lineno - 1
        for node in ast.parse(source).body[0].body  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return [
        Option(
            name,
            field.name,
            _kind(hints[field.name]),
            _toml(field.default),
            lines[place[field.name]].partition("  # ")[2].strip(),
            allowed.get(field.name, ""),
        )
        for field in dataclasses.fields(section)
    ]


def _allowed(source: str) -> dict[str, str]:
    """Key to its allowed values, of the checks that a section makes on construction."""
    found: dict[str, str] = {}
    for call in ast.walk(ast.parse(source)):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _CHECKS):
            continue
        try:
            _, key, *limits = (ast.literal_eval(a) for i, a in enumerate(call.args) if i != 2)
        except ValueError:  # a check of several keys in a loop, or a range that is an expression
            continue
        if call.func.id == "_one_of":
            found[key] = "one of " + ", ".join(limits[0])
        elif call.func.id == "_at_least":
            found[key] = f"at least {limits[0]:g}"
        else:
            found[key] = f"from {limits[0]:g} to below {limits[1]:g}"
    return found


def _kind(annotation: Any) -> str:
    if typing.get_origin(annotation) is tuple:
        return f"list of {_kind(typing.get_args(annotation)[0])}"
    if isinstance(annotation, types.UnionType):
        return " or ".join(_kind(kind) for kind in typing.get_args(annotation))
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}[annotation.__name__]


def _toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def help_text(names: Sequence[str]) -> str:
    """The options of some sections for `--help`, one a line."""
    lines = ["options for --config and --set, with their defaults:"]
    for name, (_, options) in sections().items():
        if name not in names:
            continue
        lines.append("")
        for option in options:
            note = "; ".join(filter(None, [option.meaning, option.allowed]))
            lines.append(f"  {option.section}.{option.key} = {option.default}" + (f"  ({note})" if note else ""))
    return "\n".join(lines)


_INTRODUCTION = """\
# Configuration

A configuration is a TOML file with the sections below, given by `--config FILE`; `--set section.key=value` goes before
the file, and a named flag such as `--workers 2` before both. Everything left out has the default given here. An unknown
section or key is refused with the nearest known one, and so is a value of a wrong type or out of range, before any work
begins. The configuration that a run used, with every default filled in, is `config.toml` in its directory and `config`
in its `report.json`.

```toml
[data]
name = "debian-deps"

[sampler]
fanout = [10, 10]

[cluster]
workers = 2
```

This page is written from `distgnn/config.py` by `python -m scripts.write_configuration_page`; a test compares the two.
"""


def markdown() -> str:
    """The page docs/configuration.md."""
    parts = [_INTRODUCTION]
    for name, (about, options) in sections().items():
        parts.append(f"## `[{name}]`\n\n{about}\n")
        rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
        for option in options:
            meaning = "; ".join(filter(None, [option.meaning, option.allowed])).replace("|", "\\|")
            rows.append(f"| `{option.key}` | {option.kind} | `{option.default}` | {meaning} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)
