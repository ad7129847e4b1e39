"""A loader that the hook watches: every micro-batch is remembered as the trainer fetches it."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["TaggedIterator", "TaggedLoader", "tagged"]

_OWN = ("_loader", "_tag")


class TaggedLoader:
    """The loader given, in all but iteration: attributes are read from it and set on it, `len` is its own.

    A copy is watched too. Pickled, it is the loader alone: who watches it stays in its process.
    """

    def __init__(self, loader: Any, tag: Callable[[Any], Any]) -> None:
        self._loader, self._tag = loader, tag

    def __iter__(self) -> Iterator[Any]:
        return TaggedIterator(iter(self._loader), self._tag)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:  # not there yet: while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __copy__(self) -> "TaggedLoader":
        return type(self)(copy.copy(self._loader), self._tag)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TaggedLoader":
        return type(self)(copy.deepcopy(self._loader, memo), self._tag)

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return _itself, (self._loader,)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._loader, name, value)


class TaggedIterator(TaggedLoader):
    """An iterator given, or that of a loader."""

    def __iter__(self) -> "TaggedIterator":
        return self

    def __next__(self) -> Any:
        return self._tag(next(self._loader))


class _Stateful:
    """What torch's distributed checkpoints and torchdata look for, as methods of the class itself."""

    _loader: Any

    def state_dict(self) -> Any:
        return self._loader.state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        self._loader.load_state_dict(state_dict)


class _StatefulLoader(_Stateful, TaggedLoader):
    pass


class _StatefulIterator(_Stateful, TaggedIterator):
    pass


def _itself(loader: Any) -> Any:
    return loader


def tagged(loader: Any, tag: Callable[[Any], Any]) -> TaggedLoader:
    """A wrapper that is an iterator where `loader` is one, and has a state where it has one."""
    stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
    if hasattr(loader, "__next__"):
        return (_StatefulIterator if stateful else TaggedIterator)(loader, tag)
    return (_StatefulLoader if stateful else TaggedLoader)(loader, tag)
