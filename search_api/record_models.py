"""Pydantic models made from the dataclass records that `indexer` returns: a field is declared once, in its record.

    @fields_of(indexer.trace.records.Trace)
    class TraceAnswer(Envelope):
        snippets_cut: bool

has the fields of `Trace` that `Envelope` does not have, and `snippets_cut`. A field in the body of the class replaces the
record's field of that name. Without a docstring the model has the record's.
"""

import dataclasses
import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import pyarrow as pa
from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from indexer.selection.rows import Selection
from train_hooks.export_format.records import SequenceAddress

__all__ = ["arrow_schema", "fields_of"]

Model = TypeVar("Model", bound=BaseModel)

_ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
_MODELS: dict[type, type[BaseModel]] = {}  # by record


def fields_of(
    record: type, *, without: Collection[str] = (), descriptions: Mapping[str, str] | None = None
) -> Callable[[type[Model]], type[Model]]:
    """A decorator that adds the fields of a record to a model, without those named in `without`. All of them are required.

    descriptions: of fields by name, where the docstring is not enough. A nested record is described by the model that was
    made from it before. As in `indexer.answers.plain_data`, tuples are arrays and sequence addresses are strings. Raises
    TypeError for a nested record that has no model yet.
    """
    described = descriptions or {}

    def add(model: type[Model]) -> type[Model]:
        base, hints = model.__bases__[0], get_type_hints(record)
        inherited = base.model_fields if issubclass(base, BaseModel) else {}
        own = {name: model.model_fields[name] for name in inspect.get_annotations(model)}
        fields: dict[str, Any] = {}
        for name in (item.name for item in dataclasses.fields(record)):
            if name not in own and name not in inherited and name not in without:
                fields[name] = (_json_type(hints[name]), FieldInfo(description=described.get(name)))
            elif name in own:
                fields[name] = (own[name].annotation, own[name])
        fields |= {name: (info.annotation, info) for name, info in own.items()}
        made: type[Any] = create_model(
            model.__name__, __base__=base, __module__=model.__module__, __doc__=model.__doc__ or inspect.getdoc(record),
            **fields,
        )  # fmt: skip
        _MODELS[record] = made
        return made

    return add


def arrow_schema(model: type[BaseModel], **types: pa.DataType) -> pa.Schema:
    """The columns of rows that fit a model, in the order of its fields. types: of fields whose annotation does not say it."""
    fields = model.model_fields.items()
    return pa.schema([(name, types.get(name) or _arrow_type(info.annotation)) for name, info in fields])


def _json_type(hint: Any) -> Any:
    """The type of a field in JSON."""
    if hint in _MODELS:
        return _MODELS[hint]
    if hint is SequenceAddress:
        return str
    if hint is Selection:
        return dict[str, Any]
    if dataclasses.is_dataclass(hint):
        raise TypeError(f"{hint} has no model yet; decorate one with @fields_of before those that have it as a field")
    if isinstance(hint, type) and issubclass(hint, Enum):
        return Literal[tuple(item.value for item in hint)]
    origin, arguments = get_origin(hint), [_json_type(item) for item in get_args(hint) if item is not Ellipsis]
    if origin is types.UnionType or origin is Union:
        return Union[tuple(arguments)]  # noqa: UP007 – made at run time
    if origin is tuple or origin is list or origin is Sequence:
        return list[Union[tuple(arguments)]]  # type: ignore[misc]  # noqa: UP007
    return hint


def _arrow_type(hint: Any) -> pa.DataType:
    """The type of a column."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return pa.struct(list(arrow_schema(hint)))
    if get_origin(hint) is Literal:
        return _ARROW[type(get_args(hint)[0])]
    arguments = [item for item in get_args(hint) if item is not type(None)]
    if get_origin(hint) is list:
        return pa.list_(_arrow_type(arguments[0]))
    return _arrow_type(arguments[0]) if arguments else _ARROW[hint]
