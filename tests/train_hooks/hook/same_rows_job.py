"""Four ranks without a mesh, of which two share their data, as with tensor parallelism of a trainer's own process groups.

Each rank writes RUN/rank<n>.txt: the warnings that it got. Then all of them attach to a run directory that cannot be.
"""

import os
import sys
import warnings
from pathlib import Path

import torch.distributed as dist

from tests.train_hooks.hook.toy import Toy, attach, microbatch
from train_hooks.export_format.errors import ExportStopped
from train_hooks.hook.same_rows import FirstRows, warn_of_same_rows
from train_hooks.hook.writer_rank import WriterRank


def expect(holds: bool) -> None:
    """An assert that is not optimised away, nor rewritten."""
    if not holds:
        raise AssertionError


def told(first_rows: FirstRows, writer: WriterRank, last_step: int) -> list[str]:
    """What a rank is warned of at a checkpoint barrier."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_same_rows(first_rows, writer, last_step)
    expect(all(each.category is UserWarning for each in caught))
    return [str(each.message) for each in caught]


def feed(data: int, num_steps: int) -> FirstRows:
    """The rows of a rank that feeds part `data` of each global batch."""
    first_rows = FirstRows()
    for step in range(1, num_steps + 1):
        first_rows.add(step, microbatch(10 * step + data)["input_ids"].numpy())
    return first_rows


def refused(directory: Path, rank: int) -> None:
    """Every rank is told, in words."""
    try:
        attach(Toy(), directory)
    except ExportStopped as error:
        expect(f"{directory}: Not a directory (ENOTDIR); " in str(error))
        expect(str(error).startswith("rank 0: ") == (rank != 0))
    else:
        expect(False)


def main() -> None:
    """Entry point of a rank."""
    run = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    writer = WriterRank(dp_rank=rank, num_writers=4, is_writer=True)

    own = feed(rank, 2)
    expect(told(own, writer, 2) == [])

    nothing = FirstRows()
    expect(told(nothing, writer, 1) == [])
    nothing.add(2, microbatch(1)["input_ids"].numpy())
    expect(len(told(nothing, writer, 2)) == (rank == 0))  # the step before had no rows, and so no answer

    shared = feed(rank // 2, 3 if rank else 4)  # rank 0 is ahead of the others
    found = told(shared, writer, 2)
    expect(told(shared, writer, 3) == [])  # once
    (run / f"rank{rank}.txt").write_text("\n".join(found))

    elected = WriterRank(dp_rank=rank // 2, num_writers=2, is_writer=rank % 2 == 0)
    expect(told(feed(rank // 2, 2), elected, 2) == [])

    (run / "file").touch()
    dist.barrier()
    refused(run / "file" / "run", rank)
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads of the last collective may abort a process whose interpreter is being torn down


if __name__ == "__main__":
    main()
