"""An independent log of a training: what its loaders yielded, and what its training forwards got.

Nothing of the hook's own code is used to tell one from the other. A plain wrapper around the module's `forward` clones every
tensor that it is given, under the name that the forward's own signature has for it. The loop itself says which forwards are
repetitions, which step is over, and what it throws away.
"""

import contextlib
import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Fetched", "Forward", "ForwardLog", "Step", "noted"]

_METADATA = ("segments", "sample_index", "sample_start")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fetched:
    """One micro-batch as its loader yielded it. tokens: name of the token tensor; options: those of `hook.wrap`."""

    tensors: Mapping[str, Tensor]
    tokens: str
    sample_index: tuple[int, ...] | None
    segments: tuple[tuple[Any, ...], ...] | None
    options: Mapping[str, Any]

    @property
    def rows(self) -> Tensor:
        """The token ids [num_slots, length]."""
        ids = self.tensors[self.tokens]
        return ids[None] if ids.ndim == 1 else ids

    def recorded_names(self) -> set[str]:
        """Names of the tensors that `include=` and `exclude=` leave."""
        include, exclude = self.options.get("include", ("*",)), self.options.get("exclude", ())
        chosen = {name for name in self.tensors if _matches(name, include) and not _matches(name, exclude)}
        return {self.tokens, *chosen}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Forward:
    """What one training forward got, cloned. tokens: the names of its token ids; unnamed: tensors of `*args` and tuples.

    declared: what the loop told `hook.trained_on` about it.
    """

    named: Mapping[str, Tensor]
    unnamed: Sequence[Tensor]
    tokens: Sequence[str]
    declared: dict[str, Tensor] = field(default_factory=dict)

    def token_tensors(self) -> list[Tensor]:
        """Each is to be a micro-batch of the record."""
        found = [self.named[name] for name in self.tokens if name in self.named]
        return found or [tensor for tensor in self.unnamed if not tensor.is_floating_point()][:1]

    def has_tokens_of(self, other: "Forward") -> bool:
        """Whether both got the same tokens."""
        ours, theirs = self.token_tensors(), other.token_tensors()
        return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [*self.named.values(), *self.unnamed]


@dataclass(slots=True)
class Step:
    """One step: its forwards, in order, and the micro-batches that `hook.consume` counted."""

    forwards: list[Forward] = field(default_factory=list)
    counted: list[Fetched] = field(default_factory=list)
    status: str | None = None


class ForwardLog:
    """The account of one hook's training."""

    def __init__(self) -> None:
        self.fetched: list[Fetched] = []
        self.steps: dict[int, Step] = {}
        self.failed_step: int | None = None
        self._under_way = Step()
        self._num_counted = 0
        self._silent = False
        self._logged: _LoggedForward | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A log that ranks write to a file."""
        return {**self.__dict__, "_logged": None}

    def listen(
        self,
        module: nn.Module,
        *,
        tokens: Sequence[str] = ("input_ids",),
        like: nn.Module | None = None,
        in_eval: bool = False,
        repeats: bool = False,
    ) -> None:
        """Log the forwards of `module`, and of no other any more.

        tokens: names of its token arguments; like: the module whose signature names the arguments, where `module` is a
        wrapper; in_eval: whether forwards in evaluation mode train as well; repeats: whether a forward of tokens that
        its step has already repeats that one.
        """
        self.stop()
        signature = inspect.signature(type(like or module).forward)

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def see(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.is_grad_enabled() and (module.training or in_eval):
                self.saw(args, kwargs, signature=signature, tokens=tokens, repeats=repeats)

        self._logged = _LoggedForward(module, see)

    def stop(self) -> None:
        """Listen to nothing."""
        if self._logged is not None:
            self._logged.remove()
            self._logged = None

    def saw(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        signature: inspect.Signature | None = None,
        tokens: Sequence[str] = ("input_ids",),
        repeats: bool = False,
    ) -> None:
        """A training forward got these. One before the very first fetch is a dry run."""
        if self._silent or not self.fetched:
            return
        named, unnamed = _arguments(args, kwargs, signature)
        forward = Forward(named=named, unnamed=unnamed, tokens=tokens)
        if not (repeats and any(forward.has_tokens_of(other) for other in self._under_way.forwards)):
            self._under_way.forwards.append(forward)

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Forwards in here repeat what the step has already, or train nothing."""
        before, self._silent = self._silent, True
        try:
            yield
        finally:
            self._silent = before

    def fetch(self, batch: Any, options: Mapping[str, Any]) -> None:
        """The loader yielded this."""
        if not self._silent:
            self.fetched.append(_fetched(batch, options))

    def declare(self, tensors: Mapping[str, Any]) -> None:
        """The loop says what the loss of the last forward was computed from."""
        found = {name: tensor for name, value in tensors.items() if (tensor := _as_tensor(value)) is not None}
        self._under_way.forwards[-1].declared.update(found)

    def count(self, num_microbatches: int) -> None:
        """The loop says that the oldest fetched micro-batches belong to this step."""
        end = self._num_counted + num_microbatches
        self._under_way.counted += self.fetched[self._num_counted : end]
        self._num_counted = end

    def discard(self) -> None:
        """The forwards since the last step trained nothing."""
        self._under_way = Step()

    def end_step(self, global_step: int, status: str | None) -> None:
        """The step is over."""
        step, self._under_way = self._under_way, Step()
        step.status = status
        if not step.counted:
            self._num_counted += sum(len(forward.token_tensors()) for forward in step.forwards)
        self.steps[global_step] = step

    @property
    def token_names(self) -> set[str]:
        """What the loaders call their tokens."""
        return {fetched.tokens for fetched in self.fetched}

    @property
    def num_forwards(self) -> int:
        """Of all steps that are over."""
        return sum(len(step.forwards) for step in self.steps.values())


class _LoggedForward:
    """A module's forward, in its place: no hook of torch's, so that the module has no others than the loop gives it."""

    def __init__(self, module: nn.Module, see: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> None:
        self._module, self._forward, self._see = module, module.forward, see
        self._is_own = "forward" in vars(module)
        functools.update_wrapper(self, module.forward)
        module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._see(args, kwargs)
        return self._forward(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module has a plain forward of its own."""
        copied = memo[id(self._module)]
        return types.MethodType(type(copied).forward, copied)

    def remove(self) -> None:
        """Put back what was there."""
        if self._is_own:
            self._module.forward = self._forward
        else:
            del self._module.forward


class _Noted:
    """A loader, in all but iteration itself."""

    def __init__(self, loader: Any, log: ForwardLog, options: Mapping[str, Any]) -> None:
        self._loader, self._log, self._options = loader, log, options

    def __iter__(self) -> Iterator[Any]:
        return _noting(self._loader, self._log, self._options)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def noted(loader: Any, log: ForwardLog, options: Mapping[str, Any]) -> Any:
    """The same loader or iterator; the log has all that it yields."""
    return (_noting if hasattr(loader, "__next__") else _Noted)(loader, log, options)


def _noting(loader: Any, log: ForwardLog, options: Mapping[str, Any]) -> Iterator[Any]:
    for batch in loader:
        log.fetch(batch, options)
        yield batch


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern has the tensor, or a container that it is in."""
    parts = name.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatchcase(each, pattern) for each in names for pattern in patterns)


def _fetched(batch: Any, options: Mapping[str, Any]) -> Fetched:
    metadata = batch if isinstance(batch, Mapping) else {}
    index, segments = metadata.get("sample_index"), metadata.get("segments")
    return Fetched(
        tensors={name: tensor.clone() for name, tensor in _named(batch).items()},
        tokens=_tokens_name(batch, options.get("tokens", "input_ids")),
        sample_index=None if index is None else tuple(int(value) for value in index),
        segments=None if segments is None else tuple(map(tuple, segments)),
        options=options,
    )


def _tokens_name(batch: Any, tokens: Any) -> str:
    if callable(tokens):
        chosen = tokens(batch)
        return next(name for name, value in _leaves(batch) if value is chosen)
    if isinstance(tokens, int):
        return [name for name, _ in _leaves(batch)][tokens]
    return str(tokens)


def _named(value: Any) -> dict[str, Tensor]:
    return {name: tensor for name, leaf in _leaves(value) if (tensor := _as_tensor(leaf)) is not None}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    items = _items(value)
    if items is None:
        yield name or "input_ids", value
        return
    for key, item in items:
        if key not in _METADATA:
            yield from _leaves(item, f"{name}.{key}" if name else str(key))


def _items(value: Any) -> Iterator[tuple[Any, Any]] | None:
    """What a container has in it; None where it is a leaf, as a list of numbers is."""
    if isinstance(value, Mapping):
        return iter(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    if isinstance(value, list | tuple) and _as_tensor(value) is None:
        return enumerate(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return ((each.name, getattr(value, each.name)) for each in dataclasses.fields(value))
    return None


def _as_tensor(value: Any) -> Tensor | None:
    """A copy, where it is numbers."""
    if isinstance(value, Tensor):
        return None if value.is_nested else value.detach().clone()
    if (isinstance(value, list | tuple) and _are_numbers(value)) or isinstance(value, np.ndarray):
        with contextlib.suppress(ValueError):  # a ragged list
            array = np.array(value)
            return torch.from_numpy(array) if array.dtype.kind in "biuf" else None
    return None


def _are_numbers(value: Sequence[Any]) -> bool:
    """Whether a list has numbers in it, or lists of them."""
    return bool(value) and all(
        _are_numbers(item) if isinstance(item, list | tuple) else isinstance(item, int | float) for item in value
    )


def _arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], signature: inspect.Signature | None
) -> tuple[dict[str, Tensor], list[Tensor]]:
    named: dict[str, Any] = dict(kwargs)
    unnamed: list[Any] = list(args)
    if signature is not None:
        named, unnamed = {}, []
        bound = signature.bind(None, *args, **kwargs)  # None: self
        for name, value in list(bound.arguments.items())[1:]:
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                unnamed += value
            else:
                named.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    flat = {name: leaf for outer, value in named.items() for name, leaf in _argument_leaves(outer, value)}
    rest = [leaf for value in unnamed for _, leaf in _argument_leaves("", value)]
    return (
        {name: tensor for name, leaf in flat.items() if (tensor := _as_tensor(leaf)) is not None},
        [tensor for leaf in rest if (tensor := _as_tensor(leaf)) is not None],
    )


def _argument_leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A batch that is an argument as a whole gives its own names."""
    return iter([(name, value)]) if _items(value) is None else _leaves(value)
