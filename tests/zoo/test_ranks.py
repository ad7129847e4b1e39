"""Loops of several ranks: each rank's log against the record of its data-parallel rank."""

from pathlib import Path

import pytest
import torch

from tests.train_hooks.hook.torchrun import run
from tests.zoo import ranks_job
from tests.zoo.judge import differences, read_record
from tests.zoo.table import Loop
from train_hooks.export_format.reading.reader import RunReader

SLICES = {"context_parallel": "slice"}
NUM_WRITERS = {"uneven_inputs": 4, "uneven_steps": 4, "hybrid_sharding": 4}


@pytest.mark.job
def test_loops_of_four_ranks(tmp_path: Path) -> None:
    run(Path(ranks_job.__file__), [tmp_path], num_ranks=ranks_job.NUM_RANKS, timeout_s=240)
    found = []
    for name, loop in ranks_job.LOOPS.items():
        record = read_record(tmp_path / name / "run", {"input_ids"})
        assert list(record.steps) == list(range(1, ranks_job.STEPS + 1)), name
        assert RunReader(tmp_path / name / "run").attempt(1).info.num_writers == NUM_WRITERS.get(name, 2), name
        expected = Loop(name=name, run=loop, matched=SLICES.get(name, "whole"))
        for rank in range(ranks_job.NUM_RANKS):
            dp_rank, is_writer, log = torch.load(tmp_path / f"{name}-rank{rank}.pt", weights_only=False)
            if is_writer or name == "tensor_parallel":  # whose ranks get the same tokens
                found += [f"{name}: {what}" for what in differences(record, dp_rank, log, expected)]
    assert not found, "\n".join(found)
