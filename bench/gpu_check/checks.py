"""What a check is: a function of a setting, registered in a group under a name. It raises where something is not so."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from bench.export_overhead import GPT

Figures = dict[str, float]
HOST, DEVICE = "fetched on the host", "fetched on the device"


class CheckFailed(Exception):
    """What was checked is not so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Where a check runs. The directory is its own, and empty."""

    device: torch.device
    directory: Path

    @property
    def cuda(self) -> bool:
        """Whether this is the real thing."""
        return self.device.type == "cuda"

    @property
    def shape(self) -> tuple[int, int]:
        """Slots and length of a micro-batch in most checks."""
        return (4, 256) if self.cuda else (4, 16)

    def gpt(self) -> GPT:
        """The model of most checks."""
        torch.manual_seed(0)
        return (GPT(128, 2) if self.cuda else GPT(64, 1)).to(self.device)

    def stream(self) -> torch.cuda.Stream:
        """One of its own, behind what the current one has to do."""
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        return stream

    def lag(self, cycles: int = 20_000_000) -> None:
        """Keep the training stream behind the host, by about 10 ms."""
        if self.cuda:
            torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """remark: the reason of a failure, or what else there is to say."""

    remark: str = ""
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result(Found):
    """outcome: `passed`, `failed`, or `not run`."""

    group: str
    name: str
    outcome: str
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What is checked, and the function that does it: it raises where it is not so. cuda: it cannot be emulated."""

    name: str
    run: Callable[[Setting], Found | None]
    cuda: bool = False


Run = TypeVar("Run", bound=Callable[..., Found | None])
GROUPS: dict[str, list[Check]] = {}


def check(
    group: str, name: str, variants: Iterable[tuple[str, ...]] = ((),), *, cuda: bool = False
) -> Callable[[Run], Run]:
    """Register a function as a check for each variant, its arguments."""

    def register(function: Run) -> Run:
        for variant in variants:
            full = f"{name}: {', '.join(variant)}" if variant else name
            run = functools.partial(_run, function, variant)
            GROUPS.setdefault(group, []).append(Check(name=full, run=run, cuda=cuda))
        return function

    return register


def _run(function: Callable[..., Found | None], variant: tuple[str, ...], setting: Setting) -> Found | None:
    return function(setting, *variant)
