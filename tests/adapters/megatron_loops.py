"""What the tests of Megatron-LM's, Megatron-DeepSpeed's and llm-recipes' own training loops share."""

import os
import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.adapters import job
from tests.adapters.checks import Job, Key, check_matched, crash_and_resume, logged, updated, verify
from tests.adapters.data.texts import EOD, SOURCES, VOCAB, all_tokens, check_documents, texts
from tests.train_hooks.hook.torchrun import ROOT
from train_hooks.documents.megatron_preprocessing import write_indexed
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import StepStatus
from train_hooks.replay import ReplayDataset, ReplayMicrobatch

Export = dict[Key, ReplayMicrobatch]
Log = dict[Key, dict[str, Tensor]]


def needs(checkout: str, variable: str, framework: str, *, timeout_s: int = 600) -> list[pytest.MarkDecorator]:
    """Marks of a test that runs the sources at the path in `variable`. checkout: which; framework: a package they want."""
    return [
        pytest.mark.skipif(not os.environ.get(variable), reason=f"{variable}: the path of a checkout of {checkout}"),
        pytest.mark.skipif(find_spec(framework) is None, reason=f"make test-adapters has {framework}"),
        pytest.mark.timeout(timeout_s),
    ]


def prepare(directory: Path) -> dict[str, str]:
    """The data, and the environment of the job."""
    (directory / "data").mkdir()
    for source in SOURCES:
        write_indexed(
            directory / "data" / source, texts(source), lambda text: list(text.encode()), vocab_size=VOCAB,
            end_of_document=EOD,
        )  # fmt: skip
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # their make asks python3 for pybind11, and python3-config for names: they must be this Python's
    programs = os.pathsep.join([str(Path(sys.executable).parent), f"{sys.base_prefix}/bin", os.environ["PATH"]])
    return {"PYTHONPATH": path, "PATH": programs}


def trained(script: str, run: Path, rows_a_step: int) -> Job:
    """The job of the test."""
    return Job(
        script=Path(__file__).parent / "jobs" / script, run=run, last_step=job.STEPS,
        killed_step=job.KILLED_STEP, resume_step=job.RESUME_STEP, rows_a_step=rows_a_step, timeout_s=400,
    )  # fmt: skip


def resumed(
    done: Job, tokens: str, num_writers: int, *, matched: str = "whole", **variables: str
) -> tuple[Export, Log]:
    """The export of a job that crashed and was resumed, and what forwards of the writer ranks got: the same micro-batches.

    tokens: the key of the token ids. num_writers: each has as many ranks, the first of which it is. matched: how each row was
    tied to a forward. variables: of the job.
    """
    crash_and_resume(done, **variables)
    export, log = exported(done.run, num_writers), logged(done.run / "log")
    check(done, export, tokens)
    check_matched(done.run, matched)
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    writers = {rank * done.num_ranks // num_writers: rank for rank in range(num_writers)}
    got = {key for key in log if key[2] in writers and (key[0] == 2 or key[1] <= last)}
    assert set(export) == {(attempt, step, writers[rank], number) for attempt, step, rank, number in got}
    return export, log


def check_forwards(export: Export, log: Log, *, ranks_a_writer: int = 1) -> None:
    """The forward of each rank was given the micro-batches of its writer, whole."""
    for (attempt, step, writer, microbatch), part in export.items():
        for rank in range(writer * ranks_a_writer, (writer + 1) * ranks_a_writer):
            seen = log[attempt, step, rank, microbatch]
            assert torch.equal(part.batch["tokens"], seen["input_ids"])
            assert torch.equal(part.batch["labels"], seen["labels"])


def check_stages(export: Export, log: Log) -> None:
    """Of two pipeline stages, the first was given the tokens, the second the labels."""
    for (attempt, step, _, microbatch), part in export.items():
        first, second = (log[attempt, step, stage, microbatch] for stage in (0, 1))
        assert torch.equal(part.batch["tokens"], first["input_ids"])
        assert torch.equal(part.batch["labels"], second["labels"])


def exported(run: Path, num_ranks: int) -> Export:
    """Every micro-batch of every attempt."""
    found = {}
    for attempt in RunReader(run).attempts():
        number = attempt.info.attempt
        for rank in range(num_ranks):
            for part in ReplayDataset(run, dp_rank=rank, attempt=number):
                if part.addresses[0].attempt == number:
                    found[number, part.global_step, rank, part.microbatch] = part
    return found


def check(done: Job, export: Export, tokens: str) -> None:
    """Steps, order of the data, documents. tokens: the key of the token ids."""
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert done.resume_step <= last < done.killed_step
    steps = {(1, step) for step in range(1, last + 1)}
    steps |= {(2, step) for step in range(done.resume_step + 1, done.last_step + 1)}
    sources = all_tokens()
    samples: dict[tuple[int, int], list[int | None]] = defaultdict(list)
    for (attempt, step, _, _), part in export.items():
        samples[attempt, step].extend(part.sample_index)
        check_documents(part, tokens, sources)
    assert set(samples) == steps
    for (_, step), found in samples.items():
        size = done.rows_a_step
        assert sorted(found, key=str) == sorted(range((step - 1) * size, step * size), key=str)
    assert RunReader(done.run).attempt(2).info.resume_step == done.resume_step
    assert verify(done.run) == 0


def check_overflow(done: Job) -> None:
    """The step of the model checkpoint changed no weights and is recorded as skipped; all others did, and are not."""
    changed = updated(done.run / "log")
    assert [key for key in changed if not changed[key]] == [(1, done.resume_step)]
    for attempt in RunReader(done.run).attempts():
        for step, status in attempt.step_status().items():
            skipped = (attempt.info.attempt, step) == (1, done.resume_step)
            assert status == (StepStatus.SKIPPED_UPDATE if skipped else StepStatus.APPLIED), (attempt, step)
