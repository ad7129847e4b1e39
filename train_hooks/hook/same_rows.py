"""Do several writers feed the same rows? Then the export holds each of them several times.

Without a mesh whose axes have names, every rank is taken for a rank with data of its own. Ranks of a trainer with process
groups of its own may share data all the same. So each writer keeps digests of the rows of its first steps, and the ranks
compare them once, at a checkpoint barrier. Two ranks feed the same rows where all rows of every compared step are the
same, in whatever order and micro-batches. Steps in which neither has rows do not count.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from train_hooks.hook.collectives import distributed
from train_hooks.hook.writer_rank import WriterRank

__all__ = ["FirstRows", "warn_of_same_rows"]

_NUM_STEPS = 3
_MOST_NAMED = 8
_MODULUS = 1 << 128
Digests = Mapping[int, tuple[int, int]]


class FirstRows:
    """Digests of the rows of the first steps that have any. `compared`: whether the ranks have compared theirs."""

    def __init__(self) -> None:
        self.compared = False
        self._digests: dict[int, tuple[int, int]] = {}

    def add(self, step: int, tokens: npt.NDArray[Any]) -> None:
        """Rows of a micro-batch, integers [rows, length]. On the writer thread, in the order of the steps."""
        if not len(tokens) or (step not in self._digests and len(self._digests) >= _NUM_STEPS):
            return
        number, total = self._digests.get(step, (0, 0))
        for row in np.ascontiguousarray(tokens, "<i8"):
            total += int.from_bytes(hashlib.sha256(row.data).digest()[:16], "little")
        self._digests[step] = (number + len(tokens), total % _MODULUS)

    def digests(self, last_step: int) -> dict[int, tuple[int, int]]:
        """Step → (rows, sum of their hashes), of the steps ≤ last_step, all of which must have been added."""
        return {step: digest for step, digest in self._digests.copy().items() if step <= last_step}


def warn_of_same_rows(first_rows: FirstRows, rank: WriterRank, last_step: int) -> None:
    """Warn on rank 0 where ranks fed the same rows. Collective, for all ranks; does nothing once there was an answer.

    last_step: the newest step all of whose rows were added, the same on every rank.
    """
    if rank.num_writers == 1 or first_rows.compared or not distributed():
        return
    of_ranks: list[Digests] = [{}] * dist.get_world_size()
    dist.all_gather_object(of_ranks, first_rows.digests(last_step) if rank.is_writer else {})
    first_rows.compared = any(of_ranks)
    groups = ranks_of_same_rows(of_ranks)
    if groups and dist.get_rank() == 0:
        steps = sorted({step for ranks in groups for step in of_ranks[ranks[0]]})
        warnings.warn(message_of(groups, steps), UserWarning, stacklevel=3)


def ranks_of_same_rows(of_ranks: Sequence[Digests]) -> list[list[int]]:
    """Groups of two or more ranks whose digests are the same, of those that have any."""
    groups: dict[tuple[tuple[int, tuple[int, int]], ...], list[int]] = {}
    for rank, digests in enumerate(of_ranks):
        if digests:
            groups.setdefault(tuple(sorted(digests.items())), []).append(rank)
    return [ranks for ranks in groups.values() if len(ranks) > 1]


def message_of(groups: Sequence[Sequence[int]], steps: Sequence[int]) -> str:
    """What to say of such groups."""
    named = ", ".join(_named(ranks) for ranks in groups[:_MOST_NAMED])
    more = f", and {len(groups) - _MOST_NAMED} more groups" if len(groups) > _MOST_NAMED else ""
    of_steps = f"step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"
    return (
        f"ranks {named}{more} fed the same rows in {of_steps}, and each records them; if they share data (tensor, context or "
        "pipeline parallelism), attach with mesh=DeviceMesh with named axes; if not, their samplers give them the same rows"
    )


def _named(ranks: Sequence[int]) -> str:
    if len(ranks) > _MOST_NAMED:
        return f"{', '.join(map(str, ranks[:_MOST_NAMED]))} and {len(ranks) - _MOST_NAMED} more"
    return f"{', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
