"""Records as plain data: what the commands print with `--json`, and what the API answers.

`dataclasses.asdict` copies every string and number, and takes over ten times as long.
"""

import dataclasses
import functools
import math
from typing import Any

from train_hooks.export_format.records import SequenceAddress

__all__ = ["finite_data", "plain_data"]

_ATOMS = frozenset({bool, float, int, str, type(None)})


def plain_data(value: Any) -> Any:
    """A record as a dict of its fields, a tuple or list as a list, a sequence address as text; so too inside of them.

    Anything else, such as a path or an array, is handed on as it is, and not copied.
    """
    kind: Any = type(value)
    if kind in _ATOMS:
        return value
    if kind is tuple or kind is list:
        return [item if type(item) in _ATOMS else plain_data(item) for item in value]
    if kind is dict:
        return {name: plain_data(item) for name, item in value.items()}
    if kind is SequenceAddress:
        return str(value)
    names = _field_names(kind)
    return value if names is None else {name: plain_data(getattr(value, name)) for name in names}


def finite_data(value: Any) -> Any:
    """The same with floats that JSON lacks (infinities and NaN) as text."""
    return _finite(plain_data(value))


def _finite(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {name: _finite(item) for name, item in plain.items()}
    if isinstance(plain, list):
        return [_finite(item) for item in plain]
    return str(plain) if isinstance(plain, float) and not math.isfinite(plain) else plain


@functools.cache
def _field_names(kind: type) -> tuple[str, ...] | None:
    """The fields of a record's class; None for a class of another kind."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None
