"""One optimizer step: what its forwards got, and what they consumed."""

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from train_hooks.hook.matching.consumed import ConsumedRows
from train_hooks.hook.tensors.host_copies import HostCopy
from train_hooks.hook.tensors.snapshots import Snapshot

__all__ = ["ForwardTensor", "StepState", "TensorKey", "base_name", "can_hold_tokens", "tensor_key"]


class ForwardTensor(NamedTuple):
    """A tensor that a forward got, on the CPU. key: which tensor it is, for as long as somebody keeps it."""

    name: str | None
    tensor: Tensor
    key: "TensorKey"

    @property
    def can_hold_tokens(self) -> bool:
        """Whether it is a tensor of integers that is not empty."""
        return can_hold_tokens(self.tensor)


TensorKey = tuple[int, int, torch.Size]
_serials = itertools.count(1)


class StepState:
    """What happened since the last commit.

    used: fetched micro-batches of which a row was consumed. used_up: those of them that have no free row left.
    consumed: what each forward consumed, without repetitions. staged: all that was staged for the writer thread.
    known_tensors: the token tensors of its forwards, kept so that no other tensor gets their addresses.
    unkeyed_tensors: more of those, whose keys nobody needed yet.
    recorded_tokens: copies of the tokens of forwards that were recorded by `record="forward"`.
    num_deferred: forwards whose tensors are on a device, so that the writer thread matches them.
    """

    def __init__(self) -> None:
        self.serial = next(_serials)
        self.num_fetched = self.num_forwards = self.num_deferred = self.num_recorded = 0
        self.mismatches: list[str] = []
        self.used_up: list[Snapshot] = []
        self.used: list[Snapshot] = []
        self.staged: list[Any] = []
        self.consumed: list[ConsumedRows] = []
        self.known_tensors: dict[TensorKey, Tensor] = {}
        self.unkeyed_tensors: list[Tensor] = []
        self.recorded_tokens: dict[TensorKey, list[HostCopy]] = {}

    def forget_tensors(self) -> None:
        """The step is over: let go of the trainer's tensors."""
        for snapshot in self.used_up:
            snapshot.forget_sources()
        self.known_tensors.clear()
        self.unkeyed_tensors.clear()
        self.recorded_tokens.clear()


def can_hold_tokens(tensor: Tensor) -> bool:
    """Whether it is a tensor of integers that is not empty."""
    return (
        tensor.ndim > 0
        and tensor.numel() > 0
        and not tensor.is_floating_point()
        and not tensor.is_complex()
        and tensor.dtype is not torch.bool
    )


def tensor_key(tensor: Tensor) -> TensorKey:
    """Its address, its version (which edits in place raise) and its shape."""
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version, tensor.shape


def base_name(name: str) -> str:
    """The last part of a dotted name."""
    return name.rpartition(".")[2]
