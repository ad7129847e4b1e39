"""The step that is under way: what its forwards got, and what they consumed."""

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from train_hooks.hook.matching.consumed import Consumed
from train_hooks.hook.tensors.host_copies import HostCopy
from train_hooks.hook.tensors.snapshots import Snapshot

__all__ = ["Fed", "Key", "Step", "could_be_tokens", "key_of", "last_part"]


class Fed(NamedTuple):
    """A tensor that a forward got, on the CPU. key: which tensor it is, for as long as somebody keeps it."""

    name: str | None
    tensor: Tensor
    key: "Key"

    @property
    def is_tokens(self) -> bool:
        """Whether it could hold tokens."""
        return could_be_tokens(self.tensor)


Key = tuple[int, int, torch.Size]
_serials = itertools.count(1)


class Step:
    """What happened since the last commit. fed: the tensors of its forwards, kept lest others get their addresses.

    unkeyed: more of those, whose keys nobody wanted yet. consumed: micro-batches of which no row is free any more.
    copies: of the tokens of recorded forwards.
    """

    def __init__(self) -> None:
        self.serial = next(_serials)
        self.num_fetched = self.num_forwards = self.num_late = self.num_recorded = 0
        self.mismatches: list[str] = []
        self.consumed: list[Snapshot] = []
        self.touched: list[Snapshot] = []
        self.staged: list[Any] = []
        self.consumed_parts: list[Consumed] = []
        self.fed: dict[Key, Tensor] = {}
        self.unkeyed: list[Tensor] = []
        self.copies: dict[Key, list[HostCopy]] = {}


def could_be_tokens(tensor: Tensor) -> bool:
    return (
        tensor.ndim > 0
        and tensor.numel() > 0
        and not tensor.is_floating_point()
        and not tensor.is_complex()
        and tensor.dtype is not torch.bool
    )


def key_of(tensor: Tensor) -> Key:
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version, tensor.shape


def last_part(name: str) -> str:
    return name.rpartition(".")[2]
