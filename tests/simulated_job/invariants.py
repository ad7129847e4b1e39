"""What must hold of an export after any crash, fault or rollback; raises AssertionError with the step that broke it."""

import itertools
import tempfile
from pathlib import Path

from tests.simulated_job.content import as_fed, loss_bits
from tests.simulated_job.job import RUN_DIR, Job, Rank
from tests.support.second_reader import assert_readers_agree
from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.lineage import canonical_attempt, lineage
from train_hooks.export_format.reading.reader import AttemptReader, RunReader, WriterLog
from train_hooks.export_format.records import RowLoss
from train_hooks.export_format.upkeep.compact import compact
from train_hooks.export_format.upkeep.repair import repair
from train_hooks.export_format.upkeep.status import status
from train_hooks.export_format.verify.findings import Severity
from train_hooks.export_format.verify.run import verify

__all__ = ["check", "check_second_reader", "check_verified", "finish", "play"]


def play(seed: int) -> Job:
    """One job with checks. One in ten gets all of them: after every attempt, and after repair and compaction at its end.

    The others are read when they have ended, and some of them repaired. So most of the time goes into more jobs.
    """
    job = Job(seed)
    thorough = job.rng.random() < 0.1
    for _ in range(job.rng.choice([2, 2, 3] if thorough else [1, 2, 2])):
        job.attempt()
        if thorough:
            check(job)
    for rank in job.zombies:
        rank.writer.abandon()
    if not thorough:
        check(job)
        if job.rng.random() < 0.12:
            mend(job, crash=job.rng.random() < 0.5)
        return job
    if job.rng.random() < 0.3:
        check_verified(job)
    finish(job, crash=job.rng.random() < 0.5, again=job.rng.random() < 0.3, compacted=job.rng.random() < 0.4)
    if job.rng.random() < 0.1:
        check_second_reader(job)
    return job


def mend(job: Job, *, crash: bool) -> None:
    """Repair, and perhaps lose power: the rows stay what they were."""
    if not _exists(job):
        return
    repair(RUN_DIR, file_system=job.files, assume_dead=True)
    if crash:
        job.files.crash()
    job.compared.clear()
    check(job)


def finish(job: Job, *, crash: bool, again: bool, compacted: bool) -> None:
    """Repair, lose power, compact: the rows stay what they were."""
    if not _exists(job):
        return
    repair(RUN_DIR, file_system=job.files, assume_dead=True)
    if again:
        actions = repair(RUN_DIR, file_system=job.files, assume_dead=True)
        assert all(action.kind == "left" for action in actions), f"a second repair did something: {actions}"
    if crash:
        job.files.crash()
    if not _exists(job):
        return
    if compacted:
        compact(RunReader(RUN_DIR, job.files), level=1)
    job.compared.clear()
    check(job)
    check_verified(job)
    status(RunReader(RUN_DIR, job.files))


def check_second_reader(job: Job) -> None:
    """The reader that somebody else wrote from the document reads the same."""
    if job.files.exists(RUN_DIR / "export" / "run.json"):
        with tempfile.TemporaryDirectory() as directory:
            job.files.dump(RUN_DIR, Path(directory))
            assert_readers_agree(Path(directory))


def _exists(job: Job) -> bool:
    """Whether there is a run; what a start left that failed before its first attempt may be lost, nothing else."""
    found = job.files.exists(RUN_DIR / "export" / "run.json")
    assert found or not job.ranks, "a run with attempts has vanished"
    return found


def check(job: Job) -> None:
    """Nothing acknowledged is lost, what is read is what was fed, and the lineage holds each step once."""
    if not _exists(job):
        return
    run = RunReader(RUN_DIR, job.files)
    attempts = {attempt.info.attempt: attempt for attempt in run.attempts()}
    logs = {number: attempt.writers() for number, attempt in attempts.items()}
    try:
        job.final.compare({attempt: logs[number] for number, attempt in attempts.items()})
    except DamageError as error:
        raise AssertionError(f"a reader refuses the run: {error}") from error
    assert not job.final.faults, job.final.faults[:3]
    for rank in job.ranks:
        number = rank.info.attempt
        assert number in attempts, f"attempt {number} is lost"
        log = logs[number].get(rank.dp_rank)
        assert log is not None or rank.acknowledged == rank.info.resume_step, f"writer {rank.dp_rank} is lost"
        if log is not None:
            _check_rank(attempts[number], rank, log, job.compared)
    committed = {number: attempt.committed_steps(logs[number]) for number, attempt in attempts.items()}
    for token in job.checkpoints:
        found = [
            step
            for interval in lineage([attempt.info for attempt in attempts.values()], token.attempt, token.global_step)
            for step in committed[interval.attempt]
            if interval.holds(interval.attempt, step)
        ]
        assert found == list(range(1, token.global_step + 1)), f"checkpoint {token} lacks steps: {found}"
    canonical = canonical_attempt({number: max(steps, default=None) for number, steps in committed.items()})
    if canonical is not None:
        steps = [
            step
            for interval in lineage([attempt.info for attempt in attempts.values()], canonical)
            for step in committed[interval.attempt]
            if interval.holds(interval.attempt, step)
        ]
        assert steps == list(range(1, len(steps) + 1)), f"the canonical lineage is {steps}"


def _check_rank(attempt: AttemptReader, rank: Rank, log: WriterLog, compared: set[object]) -> None:
    steps = [ack.global_step for _, ack in log.steps()]
    first = rank.info.resume_step + 1
    assert steps == list(range(first, first + len(steps))), f"steps of {rank.dp_rank}: {steps}"
    assert first + len(steps) > rank.acknowledged, f"step {rank.acknowledged} was acknowledged, {steps} are there"
    for file in log.files:
        for ack in file.acks:
            known = (rank.info.attempt, rank.dp_rank, file.name.number, ack.sha256)
            if ack.kind is AckKind.STEP and known not in compared:
                compared.add(known)
                rows = attempt.rows(attempt.frame(file, ack))
                found = tuple(as_fed(row, attempt.info) for row in rows)
                assert found == rank.fed[ack.global_step], f"step {ack.global_step} is another"
    _check_late_losses(attempt, rank, log)


def _check_late_losses(attempt: AttemptReader, rank: Rank, log: WriterLog) -> None:
    found = [(address, loss) for address, loss in attempt.late_losses({rank.dp_rank: log})]
    places = [(address.global_step, address.microbatch, address.slot) for address, _ in found]
    assert len(set(places)) == len(places), f"losses of dp_rank {rank.dp_rank} came twice"
    for place, (_, loss) in zip(places, found, strict=True):
        assert _loss_bits(loss) == _loss_bits(rank.late[place]), f"the losses of {place} are others"
    lost = set(itertools.islice(rank.late, rank.num_late)) - set(places)
    assert not lost, f"losses of {lost} were acknowledged and are lost"


def _loss_bits(loss: RowLoss) -> tuple[object, ...]:
    parts = None if loss.segments is None else tuple(map(loss_bits, loss.segments))
    return loss.microbatch, loss.slot, loss_bits(loss.loss), parts


def check_verified(job: Job) -> None:
    """No damage was done, so none is found."""
    if not job.files.exists(RUN_DIR / "export" / "run.json"):
        return
    report = verify(RunReader(RUN_DIR, job.files))
    damaged = report.of(Severity.DAMAGED)
    assert not damaged, f"no damage was done, and verify names {damaged[:3]}"
