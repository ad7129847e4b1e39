"""Ordinary training loops: the record of each is what an independent log of its forwards says, or the loop is refused."""

import contextlib
from pathlib import Path

import pytest

from tests.zoo import (
    loops_batches,
    loops_compiled,
    loops_data,
    loops_finetuning,
    loops_forms,
    loops_memory,
    loops_parallel,
    loops_steps,
    loops_updates,
    loops_wrappers,
)
from tests.zoo.play import play
from tests.zoo.table import LOOPS

MODULES = (
    loops_batches, loops_compiled, loops_data, loops_finetuning, loops_forms, loops_memory, loops_parallel,
    loops_steps, loops_updates, loops_wrappers,
)  # fmt: skip
"""Each puts its loops into the table as it is imported."""


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of torch's compiler
@pytest.mark.parametrize("name", LOOPS)
def test_loop(name: str, tmp_path: Path) -> None:
    loop = LOOPS[name]
    with contextlib.nullcontext() if loop.warns is None else pytest.warns(UserWarning, match=loop.warns):
        outcome = play(loop, tmp_path)

    assert outcome.verdict in (("exact", "refused") if loop.expect == "either" else (loop.expect,)), outcome
    assert outcome.num_steps or outcome.verdict == "refused"


def test_every_loop_says_what_real_code_does_this() -> None:
    assert len(LOOPS) >= 40
    assert all(loop.run.__doc__ for loop in LOOPS.values())
