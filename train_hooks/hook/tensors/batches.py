"""What a loader yields, and what a forward gets, as named tensors.

A micro-batch may be a dict (or another Mapping), a tuple, a list, a named tuple, a dataclass, an object with attributes,
a bare tensor, or these in one another. Every tensor in it has a name: its key, field or index, joined by dots
(`input_ids`, `0`, `0.positions`). A bare tensor is called `input_ids`. `segments` (a list of `Segment` for each slot),
`sample_index` and `sample_start` (an integer for each slot) are the hook's own, wherever they stand in a dict.

`values` says what else counts as a tensor. What cannot be recorded is an error at the fetch, and no tensor in a
forward. Tokens of one dimension are one row.
"""

import copy
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from train_hooks.export_format.errors import InputError
from train_hooks.hook.tensors.values import CONTAINER, NOTHING, TENSOR, kind_of, tensor_of

__all__ = [
    "METADATA_KEYS",
    "NamedMicrobatch",
    "TokensSelector",
    "forward_tensors",
    "is_recorded",
    "name_microbatch",
    "parameter_names",
    "readable_tensors",
    "without_metadata",
]

METADATA_KEYS = ("segments", "sample_index", "sample_start")
_METADATA = frozenset(METADATA_KEYS)
_MAX_DEPTH = 4
_STRIDED = torch.strided
_INTEGERS = frozenset(
    (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
)
TokensSelector = str | int | Callable[[Any], Any]


class NamedMicrobatch(NamedTuple):
    """A micro-batch taken apart. `tokens` is the name of the token tensor, integers [num_slots, length]."""

    tokens: str
    tensors: Mapping[str, Tensor]
    segments: Any
    sample_index: Any
    sample_start: Any = None


def name_microbatch(
    batch: Any, tokens: TokensSelector, include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> NamedMicrobatch:
    """Take `batch` apart.

    tokens: name or index of the token tensor, or a function of the micro-batch that gives it. Where the function gives a
    part of a tensor, or a new one, the tokens are called `tokens`, beside all that the micro-batch has.
    include, exclude: `fnmatch` patterns of names that are recorded alone (None: all), and that are not. A pattern that
    matches a container matches all in it. The tokens are recorded always.

    Raises InputError where `tokens` are no integers of one or two dimensions, and for what cannot be recorded.
    """
    if include is None and not exclude and type(batch) is dict and type(tokens) is str:  # the usual case, told fast
        tensors: dict[str, Tensor] = batch.copy()
        found: dict[str, Any] = {}
        if not _METADATA.isdisjoint(batch):
            found = {key: tensors.pop(key) for key in METADATA_KEYS if key in tensors}
        if _are_all_plain(tensors):
            return _with_tokens(batch, tokens, tokens, tensors, found)
    name = None if callable(tokens) else tokens if isinstance(tokens, str) else _name_at(batch, tokens)
    choice = _NameFilter(_patterns(include), _patterns(exclude) or (), name)
    if name is not None and choice.exclude:
        choice.check_tokens(name)
    contents = _TensorCollector(choice)
    if isinstance(batch, Tensor | np.ndarray) or (tokens == "input_ids" and kind_of(batch) is TENSOR):
        contents.add("input_ids", batch)
    else:
        contents.walk(batch)
    if callable(tokens):
        name = contents.choose(tokens(batch))
    return _with_tokens(batch, tokens, name or "", contents.tensors, contents.metadata)


def _are_all_plain(items: dict[Any, Any]) -> bool:
    """Whether all are tensors whose bytes can be looked at, by names."""
    for key, value in items.items():
        if (
            type(value) is not Tensor
            or type(key) is not str
            or value.layout is not _STRIDED
            or value.is_nested
            or value.is_quantized
            or value.is_meta
        ):
            return False
    return True


def _with_tokens(
    batch: Any, tokens: TokensSelector, name: str, tensors: dict[str, Tensor], metadata: Mapping[str, Any]
) -> NamedMicrobatch:
    found = tensors.get(name)
    if found is None:
        raise InputError(
            f"expected micro-batches with token ids at {tokens!r}, found {type(batch).__name__} with tensors "
            f"{', '.join(tensors) or 'none'}; name the token tensor: hook.wrap(loader, tokens=key, index or function)"
        )
    num_dimensions = found.ndim
    if found.dtype not in _INTEGERS or (num_dimensions != 2 and num_dimensions != 1):
        raise InputError(
            f"expected integers [num_slots, sequence_length] or [length] at {name!r}, "
            f"found {found.dtype} {list(found.shape)}"
        )
    if num_dimensions == 1:
        tensors[name] = found.unsqueeze(0)
    if not metadata:
        return NamedMicrobatch(name, tensors, None, None)
    return NamedMicrobatch(
        name, tensors, metadata.get("segments"), metadata.get("sample_index"), metadata.get("sample_start")
    )


def _name_at(batch: Any, index: int) -> str:
    if not isinstance(batch, Sequence):
        return str(index)
    if not -len(batch) <= index < len(batch):
        raise InputError(f"tokens={index}: expected an index of a micro-batch of {len(batch)} items")
    fields = getattr(type(batch), "_fields", None)
    return str(fields[index] if fields else index % len(batch))


def forward_tensors(
    args: Sequence[Any], kwargs: Mapping[str, Any], parameters: Sequence[str] = ()
) -> list[tuple[str | None, Tensor]]:
    """Every tensor of a forward's arguments that `readable_tensors` finds, with its name.

    parameters: names of the positional arguments (`parameter_names`); tensors beyond them have none. The tensors in a dict
    or other container that is a positional argument have the names that a loader's micro-batch gives them; where several
    arguments are containers, after the argument's name or index.
    """
    found: list[tuple[str | None, Tensor]] = []
    containers: list[tuple[int, str, list[tuple[str, Tensor]]]] = []
    for index, value in enumerate(args):
        argument = parameters[index] if index < len(parameters) else None
        kind = kind_of(value)
        if kind is TENSOR:
            tensor = tensor_of(value, for_record=False)
            if isinstance(tensor, Tensor):
                found.append((argument, tensor))
        elif kind is CONTAINER and (inside := _collected(value)):
            containers.append((len(found), argument or str(index), inside))
    for at, argument, inside in reversed(containers):
        prefix = f"{argument}." if len(containers) > 1 else ""
        found[at:at] = [(prefix + name, tensor) for name, tensor in inside]
    found.extend(_collected(kwargs))
    return found


def readable_tensors(values: Any) -> list[Tensor]:
    """Every tensor in `values` whose bytes can be looked at; a DTensor counts as its local tensor."""
    return [tensor for _, tensor in _collected([values] if isinstance(values, Tensor) else values)]


def _collected(value: Any) -> list[tuple[str, Tensor]]:
    contents = _TensorCollector(None)
    contents.walk(value)
    return contents.found


def parameter_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the positional parameters of a model's forward; of a wrapper that has none, those of the model in it."""
    while True:
        names = _positional(module.forward)
        inner = getattr(module, "_orig_mod", None)
        inner = getattr(module, "module", None) if inner is None else inner
        if names or not isinstance(inner, nn.Module):
            return names
        module = inner


def _positional(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a compiled or scripted function
        return ()
    return tuple(each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD))


def is_recorded(name: str, include: Sequence[str] | None, exclude: Sequence[str]) -> bool:
    """Whether a tensor of this name, of a forward, is recorded; patterns as of `name_microbatch`."""
    choice = _NameFilter(_patterns(include), _patterns(exclude) or ())
    ends = [index for index, character in enumerate(name) if character == "."]
    names = [name[:end] for end in (*ends, len(name))]
    return any(choice.includes(each) for each in names) and not any(choice.excludes(each) for each in names)


class _NameFilter(NamedTuple):
    """Which names are recorded. tokens: the name of the tokens, where it is known before the micro-batch is walked."""

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    tokens: str | None = None

    def includes(self, name: str) -> bool:
        return self.include is None or name == self.tokens or _matches(name, self.include)

    def excludes(self, name: str) -> bool:
        return bool(self.exclude) and _matches(name, self.exclude)

    def check_tokens(self, name: str) -> None:
        """Raises InputError where the tokens, or what they are in, are excluded."""
        ends = [index for index, character in enumerate(name) if character == "."]
        if any(_matches(name[:end], self.exclude) for end in (*ends, len(name))):
            raise InputError(
                f"exclude: expected patterns that leave the tokens ({name!r}), found {', '.join(self.exclude)}; to record "
                "the tokens alone give include=[]"
            )


def _patterns(patterns: Sequence[str] | None) -> tuple[str, ...] | None:
    return (patterns,) if isinstance(patterns, str) else None if patterns is None else tuple(patterns)


@functools.lru_cache(maxsize=4096)
def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class _TensorCollector:
    """The tensors in a micro-batch, as `choice` says; without one, all that can be looked at in a forward's arguments.

    found: by name. _origins: what the micro-batch has in their place; _left_out: the same of what is not recorded.
    """

    def __init__(self, choice: _NameFilter | None) -> None:
        self.found: list[tuple[str, Tensor]] = []
        self.metadata: dict[str, Any] = {}
        self._choice = choice
        self._origins: list[Any] = []
        self._left_out: dict[str, Any] = {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By name. Raises InputError where two have the same."""
        tensors = dict(self.found)
        if len(tensors) < len(self.found):
            names = [name for name, _ in self.found]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"expected one tensor of each name, found two at {twice!r}; rename one of the keys")
        return tensors

    def walk(self, value: Any, inside: str = "", depth: int = _MAX_DEPTH, *, included: bool = False) -> None:
        """Add the tensors in a container. inside: its name; included: whether `include` has it."""
        choice = self._choice
        patterns = choice is not None and (choice.include is not None or choice.exclude)
        for key, item in value.items() if type(value) is dict else _items(value):
            if key in _METADATA:
                self.metadata[key] = item
                continue
            kind = TENSOR if type(item) is Tensor else kind_of(item)
            if kind is NOTHING:
                continue
            name = f"{inside}.{key}" if inside else str(key)
            if patterns and choice is not None:
                wanted = included or choice.includes(name)
                if choice.excludes(name) or not (wanted or kind is CONTAINER):
                    self._left_out[name] = item
                    continue
            else:
                wanted = False
            if kind is TENSOR:
                self.add(name, item)
            elif depth:
                self.walk(item, name, depth - 1, included=wanted)

    def add(self, name: str, value: Any) -> None:
        """One tensor, array or list of numbers. Raises InputError for what cannot be recorded, in a micro-batch."""
        choice = self._choice
        tensor = tensor_of(value, for_record=choice is not None)
        if isinstance(tensor, Tensor):
            self.found.append((name, tensor))
            self._origins.append(value)
        elif choice is not None:
            hint = "" if name == choice.tokens else f", or leave it out: hook.wrap(…, exclude=[{name!r}])"
            raise InputError(f"{name!r}: {tensor}{hint}")

    def choose(self, chosen: Any) -> str:
        """The name of what a function gave as tokens, which is added where it is not there."""
        for (name, _), origin in zip(self.found, self._origins, strict=True):
            if origin is chosen:
                return name
        for name, origin in self._left_out.items():
            if origin is chosen:
                return self._add_tokens(name, origin)
        if kind_of(chosen) is TENSOR and isinstance(tensor := tensor_of(chosen, for_record=True), Tensor):
            for name, known in self.found:
                if _is_whole(tensor, known):
                    return name
        taken = {*self._left_out, *(name for name, _ in self.found)}
        free = (f"tokens_{number}" for number in itertools.count(2))
        return self._add_tokens(next(name for name in itertools.chain(["tokens"], free) if name not in taken), chosen)

    def _add_tokens(self, name: str, value: Any) -> str:
        if self._choice is not None:
            self._choice.check_tokens(name)
        if kind_of(value) is not TENSOR:
            names = ", ".join(name for name, _ in self.found) or "none"
            raise InputError(
                f"tokens: expected a function that gives token ids, found {type(value).__name__}; the micro-batch has the "
                f"tensors {names}"
            )
        self.add(name, value)
        return name


def _is_whole(view: Tensor, tensor: Tensor) -> bool:
    """Whether `view` is all of `tensor`, in the same memory."""
    if view.data_ptr() != tensor.data_ptr() or view.dtype != tensor.dtype or view.device != tensor.device:
        return False
    return view.shape == tensor.shape and view.stride() == tensor.stride() and view.numel() > 0


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, tuple | list):
        yield from enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield field.name, getattr(value, field.name, None)
    elif hasattr(value, "__dict__") and not callable(value):
        yield from vars(value).items()


def without_metadata(batch: Any) -> Any:
    """`batch` for the trainer: the same object where it has no metadata in its dicts, else a shallow copy without."""
    if isinstance(batch, Mapping):
        changed = {key: without_metadata(value) for key, value in batch.items() if key not in METADATA_KEYS}
        if len(changed) == len(batch) and all(changed[key] is batch[key] for key in changed):
            return batch
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return changed
        other = copy.copy(batch)
        for key in [key for key in batch if key not in changed]:
            del other[key]
        other.update({key: value for key, value in changed.items() if value is not batch[key]})
        return other
    if type(batch) in (tuple, list) and any(isinstance(item, Mapping) for item in batch):
        return type(batch)(without_metadata(item) for item in batch)
    return batch
