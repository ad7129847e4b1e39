"""What must hold of an export after any crash, fault or rollback; raises AssertionError with the step that broke it."""

from tests.simulated_job.job import RUN_DIR, FedRow, Job, Rank
from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.compact import compact
from train_hooks.export_format.findings import Severity
from train_hooks.export_format.lineage import canonical_attempt, lineage
from train_hooks.export_format.reader import AttemptReader, RunReader, WriterLog
from train_hooks.export_format.records import Row
from train_hooks.export_format.repair import repair
from train_hooks.export_format.status import status
from train_hooks.export_format.tensors import decode_tensor
from train_hooks.export_format.verify import verify

__all__ = ["check", "check_verified", "finish", "play"]


def play(seed: int) -> Job:
    """One job with all checks: after every attempt, and after repair and compaction at its end."""
    job = Job(seed)
    for _ in range(job.rng.choice([2, 2, 3])):
        job.attempt()
        check(job)
    for rank in job.zombies:
        rank.writer.abandon()
    if job.rng.random() < 0.3:
        check_verified(job)
    finish(job, crash=job.rng.random() < 0.5, again=job.rng.random() < 0.3, compacted=job.rng.random() < 0.2)
    return job


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
                assert tuple(map(_as_fed, rows)) == rank.fed[ack.global_step], f"step {ack.global_step} is another"


def _as_fed(row: Row) -> FedRow:
    assert row.sample_index is not None
    return FedRow(
        microbatch=row.address.microbatch,
        slot=row.address.slot,
        tokens=tuple(row.tokens.tolist()),
        mask=tuple(decode_tensor(row.tensors[0], row.tokens, row.segments).tolist()),
        segments=row.segments,
        sample_index=row.sample_index,
        status=row.status,
    )


def check_verified(job: Job) -> None:
    """No damage was done, so none is found."""
    if not job.files.exists(RUN_DIR / "export" / "run.json"):
        return
    report = verify(RunReader(RUN_DIR, job.files))
    damaged = report.of(Severity.DAMAGED)
    assert not damaged, f"no damage was done, and verify names {damaged[:3]}"
