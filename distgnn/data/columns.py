"""What a column of an interaction log may hold, and how it becomes a user, item, timestamp or weight.

Every error names the file, the row and the column. Rows are counted from 1; a CSV header is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from distgnn.types import UserError

# Words that stand for "no value" in a column whose other values are numbers.
NULL_WORDS = ("", "NA", "N/A", "nan", "NaN", "null", "NULL", "None", "\\N")
# The one spelling of an integer that survives a round trip: "007" and "+7" are names, not the number 7.
_INTEGER = r"^(0|-?[1-9][0-9]{0,18})$"
_MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class LogColumns:
    """Names of a log's columns; an empty name means that the log has no such column."""

    user: str
    item: str
    timestamp: str = ""
    weight: str = ""

    def __post_init__(self) -> None:
        named = list(self.by_role().values())
        for role, name in (("user", self.user), ("item", self.item)):
            if not name:
                raise UserError(f"data.{role}_column is empty: name the log's {role} column")
        for name in named:
            if named.count(name) > 1:
                raise UserError(f"column {name!r} is named for two things; user, item, timestamp and weight differ")

    def by_role(self) -> dict[str, str]:
        """Role (user, item, timestamp, weight) to column name, of the columns that are there."""
        roles = {"user": self.user, "item": self.item, "timestamp": self.timestamp, "weight": self.weight}
        return {role: name for role, name in roles.items() if name}

    def check_present(self, file: str, there: list[str]) -> None:
        """Refuse a file that lacks one of the columns, or has it twice."""
        for role, name in self.by_role().items():
            count = there.count(name)
            if count == 1:
                continue
            listed = ", ".join(repr(column) for column in there) or "none"
            if count == 0:
                raise UserError(
                    f"{file}: no column {name!r}; columns there: {listed}. Set data.{role}_column to one of them"
                    f" (a file without a header line needs one)"
                )
            raise UserError(f"{file}: column {name!r} is there {count} times; columns there: {listed}. Rename one")


@dataclass(frozen=True)
class Place:
    """Where a batch of values stands: `row` is the number of its first row, counted from 1."""

    file: str
    column: str
    row: int

    def error(self, offset: int, complaint: str) -> UserError:
        """The error for the value `offset` rows into the batch."""
        return UserError(f"{self.file}, row {self.row + offset}, column {self.column!r}: {complaint}")


def _first_true(mask: pa.Array) -> int:
    return int(pc.index(mask, True).as_py())


def _refuse_where(mask: pa.Array, values: pa.Array, place: Place, complaint: Callable[[str], str]) -> None:
    """Raise for the first row where `mask` is true; `complaint` gets its value as text."""
    at = _first_true(mask)
    if at >= 0:
        raise place.error(at, complaint(str(values[at].as_py())))


def _refuse_nulls(values: pa.Array, place: Place, role: str) -> None:
    if values.null_count:
        raise place.error(_first_true(values.is_null()), f"the {role} is null; drop or fill such rows")


def is_integer_text(values: pa.Array) -> bool:
    """Whether every value of a string array that is not a null word is an int64 in its canonical spelling."""
    words = _without_null_words(values)
    if len(words) == 0:
        return True
    if not pc.all(pc.match_substring_regex(words, _INTEGER)).as_py():
        return False
    try:
        words.cast(pa.int64())
    except pa.ArrowInvalid:  # 19 digits beyond int64
        return False
    return True


def has_value(values: pa.Array) -> bool:
    """Whether a string array holds anything but nulls and null words."""
    return len(_without_null_words(values)) > 0


def _without_null_words(values: pa.Array) -> pa.Array:
    kept = values.drop_null()
    return kept.filter(pc.invert(pc.is_in(kept, value_set=pa.array(NULL_WORDS))))


def _null_words_to_null(values: pa.Array) -> pa.Array:
    words = pc.is_in(values, value_set=pa.array(NULL_WORDS))
    return pc.if_else(words, pa.scalar(None, pa.string()), values)


def key_kind(arrow_type: pa.DataType) -> str | None:
    """`integer` or `text` for a type that can hold keys, else None."""
    if pa.types.is_dictionary(arrow_type):
        return key_kind(arrow_type.value_type)
    if pa.types.is_integer(arrow_type) or (pa.types.is_decimal(arrow_type) and arrow_type.scale == 0):
        return "integer"
    if _is_text(arrow_type) or pa.types.is_binary(arrow_type) or pa.types.is_large_binary(arrow_type):
        return "text"
    return None


def timestamp_kind(arrow_type: pa.DataType) -> str | None:
    """`whole` numbers, or a `clock` (fractional seconds and Arrow's date and time types), else None."""
    if pa.types.is_integer(arrow_type):
        return "whole"
    if pa.types.is_floating(arrow_type) or pa.types.is_timestamp(arrow_type) or pa.types.is_date(arrow_type):
        return "clock"
    return None


def _is_text(arrow_type: pa.DataType) -> bool:
    return pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type)


def to_keys(values: pa.Array, kind: str, place: Place, role: str) -> pa.Array:
    """Keys as int64 (kind `integer`) or string (kind `text`), `[n]`, without nulls.

    Raises:
        UserError: a null, bytes that are not UTF-8, an integer beyond int64.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if kind == "integer" and _is_text(values.type):
        values = _null_words_to_null(values)
    _refuse_nulls(values, place, role)
    try:
        return values.cast(pa.int64() if kind == "integer" else pa.string())
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{place.file}, from row {place.row} on, column {place.column!r}: not a valid {role} key: {error}"
        ) from error


def to_timestamps(values: pa.Array, kind: str, place: Place) -> pa.Array:
    """Timestamps as int64 `[n]`: whole numbers as they are; seconds with a fraction, dates and times in microseconds.

    Raises:
        UserError: a null, text that is no number, a value that is not finite or too large.
    """
    if _is_text(values.type):
        values = _parse_timestamps(_null_words_to_null(values), kind, place)
    _refuse_nulls(values, place, "timestamp")
    if kind == "whole":
        try:
            return values.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise UserError(f"{place.file}, column {place.column!r}: {error}") from error
    if not pa.types.is_floating(values.type):
        return values.cast(pa.timestamp("us", getattr(values.type, "tz", None)), safe=False).cast(pa.int64())
    scaled = pc.multiply(values.cast(pa.float64()), float(_MICROSECONDS))
    fits = pc.less(pc.abs(scaled), 2.0**63)  # false for NaN too
    _refuse_where(
        pc.invert(fits), values, place, lambda v: f"timestamp {v} is not a number of seconds; mend or drop the row"
    )
    return pc.round(scaled).cast(pa.int64(), safe=False)


def _parse_timestamps(values: pa.Array, kind: str, place: Place) -> pa.Array:
    target = pa.int64() if kind == "whole" else pa.float64()
    return _parse_numbers(values, target, place, lambda v: f"timestamp {v!r} is not a number; give seconds or integers")


def _parse_numbers(values: pa.Array, target: pa.DataType, place: Place, complaint: Callable[[str], str]) -> pa.Array:
    """Cast text to numbers; the first value that is none is named."""
    try:
        return values.cast(target)
    except pa.ArrowInvalid:
        pass
    for at, value in enumerate(values.to_pylist()):
        try:
            pa.array([value], pa.string()).cast(target)
        except pa.ArrowInvalid as error:
            raise place.error(at, complaint(str(value))) from error
    raise AssertionError("the whole array failed to cast, but none of its values did")


def to_weights(values: pa.Array, place: Place) -> pa.Array:
    """Weights as float32 `[n]`, finite.

    Raises:
        UserError: a null, text that is no number, a value that is not finite.
    """
    if _is_text(values.type):
        words = _null_words_to_null(values)
        values = _parse_numbers(words, pa.float64(), place, lambda v: f"weight {v!r} is not a number")
    _refuse_nulls(values, place, "weight")
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type)):
        raise UserError(f"{place.file}: column {place.column!r} has type {values.type}; weights must be numbers")
    weights = values.cast(pa.float64()).cast(pa.float32(), safe=False)
    _refuse_where(pc.invert(pc.is_finite(weights)), values, place, lambda v: f"weight {v} is not finite as float32")
    return weights
