"""An export against the log of the forwards."""

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.adapters.data.data import segments_of, tokens_of
from tests.train_hooks.hook.torchrun import ROOT, free_port, start, where_it_hangs
from train_hooks import Segment
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import Evidence, Matched
from train_hooks.export_format.upkeep.status import status
from train_hooks.replay import ReplayDataset, ReplayMicrobatch

Key = tuple[int, int, int, int]  # attempt, global_step, dp_rank, microbatch
NUM_RANKS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job that is killed in step `killed_step` and resumes from the model checkpoint of step `resume_step`.

    goes_on: whether the trainer, resumed, goes on with the data where the checkpoint was, rather than from the start.
    """

    script: Path
    run: Path
    last_step: int
    killed_step: int
    resume_step: int
    rows_a_step: int
    num_ranks: int = NUM_RANKS
    goes_on: bool = True
    timeout_s: float = 200


def crash_and_resume(job: Job, *arguments: str, **variables: str) -> None:
    """Start it twice: the first time all ranks kill themselves in a forward of `killed_step`. arguments: behind the run."""
    kill = f"{job.killed_step},1"
    first = run_ranks(job, *arguments, KISEKI_TEST_KILL_AT=kill, **variables)
    assert [code for code, _ in first] == [-9] * job.num_ranks, first
    run_once(job, *arguments, **variables)


def run_once(job: Job, *arguments: str, **variables: str) -> None:
    """Start it, from its newest checkpoint, to its end."""
    ended = run_ranks(job, *arguments, **variables)
    assert [code for code, _ in ended] == [0] * job.num_ranks, "\n".join(output for _, output in ended)


def run_ranks(job: Job, *arguments: str, **variables: str) -> list[tuple[int, str]]:
    """Start it, and wait: exit code and output of each rank."""
    port = str(free_port())
    processes = start(job.script, [job.run, *arguments], num_ranks=job.num_ranks, **{"MASTER_PORT": port, **variables})
    deadline = time.monotonic() + job.timeout_s
    ended = []
    try:
        for process in processes:
            output, _ = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
            ended.append((process.returncode, output))
    except subprocess.TimeoutExpired:
        raise AssertionError(f"hangs for {job.timeout_s} s:\n{where_it_hangs(processes)}") from None
    finally:
        for process in processes:
            process.kill()
        for left in Path("/dev/shm").glob(
            f"deepspeed_*_{port}_*"
        ):  # 69 MB a rank, which one that is killed cannot remove
            left.unlink()
    return ended


def logged(directory: Path) -> dict[Key, dict[str, Tensor]]:
    """Every forward of training that the models wrote down; attempts are counted from 1."""
    found: dict[Key, dict[str, Tensor]] = {}
    for path in directory.glob("rank*.jsonl"):
        rank = int(path.stem.removeprefix("rank"))
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            key = (line["life"] + 1, line["step"], rank, line["microbatch"])
            assert key not in found
            found[key] = {name: torch.tensor(values) for name, values in line["tensors"].items()}
    return found


def updated(directory: Path) -> dict[tuple[int, int], bool]:
    """(attempt, step) → whether it changed the weights of any rank, where the log has a step after it."""
    found: dict[tuple[int, int], bool] = {}
    for path in directory.glob("rank*.jsonl"):
        lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
        weights = {(line["life"] + 1, line["step"]): line["weights"] for line in lines}
        for (attempt, step), before in weights.items():
            after = weights.get((attempt, step + 1))
            if after is not None:
                found[attempt, step] = found.get((attempt, step), False) or before != after
    return found


def exported(run: Path) -> dict[Key, ReplayMicrobatch]:
    """Every micro-batch of every attempt, superseded ones among them."""
    found = {}
    for attempt in RunReader(run).attempts():
        number = attempt.info.attempt
        for rank in range(NUM_RANKS):
            for part in ReplayDataset(run, dp_rank=rank, attempt=number):
                if part.addresses[0].attempt == number:
                    found[number, part.global_step, rank, part.microbatch] = part
    return found


def check_export(
    job: Job,
    *,
    shuffled: bool = True,
    matched: str = "whole",
    tokens: Callable[[int, int], Tensor] = lambda index, _: tokens_of(index),
    documents: Callable[[int], list[Segment]] = segments_of,
) -> None:
    """Row for row what the forwards got; each global batch complete and distinct; documents right; verify says fine.

    matched: how each row was tied to a forward.
    tokens: (index, length of the micro-batch) → what a sequence is; documents: index → its segments.
    """
    log, export = logged(job.run / "log"), exported(job.run)
    _check_steps(job, log, export)
    for key, part in export.items():
        assert key in log, f"{key} was exported, no forward got it"
        _check_tensors(key, log[key], part, tokens, documents)
    for (number, step, rank, _), part in ((key, part) for key, part in export.items()):
        assert all(
            (address.attempt, address.global_step, address.dp_rank) == (number, step, rank)
            for address in part.addresses
        )
    _check_global_batches(job, export)
    check_matched(job.run, matched)
    assert verify(job.run) == 0
    if shuffled:
        first = [part.sample_index for key, part in sorted(export.items()) if key[:3] == (1, 1, 0)]
        assert sorted(first) != [tuple(range(len(first)))]


def check_matched(run: Path, matched: str, *, num_skipped: int = 0) -> None:
    """Each row was tied to a forward in this way, but for `num_skipped` of steps that were skipped without a forward."""
    shares = status(RunReader(run)).shares
    assert shares.num_rows > num_skipped
    expected = {"whole": 0, "slice": 0, "count": num_skipped}
    expected[matched] += shares.num_rows - num_skipped
    assert {name: getattr(shares, name) for name in expected} == expected, shares.sentence()
    assert (shares.loader, shares.forward) == (expected["count"], expected["whole"] + expected["slice"])


def check_seen(run: Path, *names: str) -> None:
    """Which tensors, and no others, the forward was seen to get of each row that it was seen to get."""
    seen: dict[str, set[bool]] = defaultdict(set)
    for attempt in RunReader(run).attempts():
        for frame in attempt.frames(1, 1 << 30):
            for row in attempt.rows(frame):
                if (row.matched or attempt.info.default_matched) is not Matched.COUNT:
                    for tensor in row.tensors:
                        evidence = tensor.evidence or attempt.info.default_tensor_evidence
                        seen[tensor.name].add(evidence is Evidence.FORWARD)
    assert all(len(found) == 1 for found in seen.values()), seen
    assert {name for name, found in seen.items() if found == {True}} == set(names)


def _check_steps(job: Job, log: Mapping[Key, Any], export: Mapping[Key, Any]) -> None:
    """Attempt 1 has every step up to the checkpoint, and none that was not over; attempt 2 the rest, whole."""
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert job.resume_step <= last < job.killed_step
    whole = {key for key in log if (key[0] == 1 and key[1] <= last) or key[0] == 2}
    assert set(export) == whole
    assert {step for attempt, step, _, _ in export if attempt == 2} == set(
        range(job.resume_step + 1, job.last_step + 1)
    )
    second = RunReader(job.run).attempt(2).info
    assert (second.parent_attempt, second.resume_step) == (1, job.resume_step)


def _check_tensors(
    key: Key,
    seen: Mapping[str, Tensor],
    part: ReplayMicrobatch,
    tokens: Callable[[int, int], Tensor],
    documents: Callable[[int], list[Segment]],
) -> None:
    for name, tensor in seen.items():
        assert torch.equal(part.batch[name].to(tensor.dtype), tensor), (key, name)
    assert part.sample_index
    for slot, index in enumerate(part.sample_index):
        assert index is not None
        assert torch.equal(seen["input_ids"][slot], tokens(index, seen["input_ids"].shape[1])), key
        if part.segments[slot]:
            assert list(part.segments[slot]) == documents(index), key


def _check_global_batches(job: Job, export: Mapping[Key, ReplayMicrobatch]) -> None:
    batches: dict[tuple[int, int], list[int | None]] = defaultdict(list)
    for (attempt, step, _, _), part in export.items():
        batches[attempt, step].extend(part.sample_index)
    for key, samples in batches.items():
        assert len(samples) == len(set(samples)) == job.rows_a_step, key
    again = [step for attempt, step in batches if attempt == 1 and step > job.resume_step]
    for step in again if job.goes_on else []:  # the superseded steps are repeated with the same sequences
        assert sorted(map(str, batches[1, step])) == sorted(map(str, batches[2, step]))
    first = [sample for step in range(1, job.resume_step + 1) for sample in batches[1, step]]
    second = [sample for step in range(job.resume_step + 1, job.last_step + 1) for sample in batches[2, step]]
    assert len(first) == len(set(first)) and len(second) == len(set(second))
    assert set(first).isdisjoint(second) == job.goes_on


def verify(run: Path, *options: str) -> int:
    """Exit code of `kiseki export verify`."""
    return run_command("export", "verify", str(run), *options)[0]


def run_command(*words: str) -> tuple[int, str]:
    """Exit code and output of a command of kiseki's."""
    command = [sys.executable, "-c", "from ui.cli import main; main()", *words]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout


def metrics_of(run: Path) -> dict[int, dict[str, float]]:
    """global_step → the numbers recorded for it, of all attempts."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for attempt in RunReader(run).attempts():
        for _, record in attempt.step_records():
            if record.kind == "metrics":
                found[record.global_step].update(record.values)
    return found
