"""A loader that the hook watches: every micro-batch is remembered as the trainer fetches it."""

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["TaggedIterator", "TaggedLoader", "tagged"]

_OWN = ("_loader", "_tag")


class TaggedLoader:
    """The loader given, in all but iteration: attributes are read from it and set on it, `len` is its own."""

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


def tagged(loader: Any, tag: Callable[[Any], Any]) -> TaggedLoader:
    """A wrapper that is an iterator where `loader` is one."""
    return (TaggedIterator if hasattr(loader, "__next__") else TaggedLoader)(loader, tag)
