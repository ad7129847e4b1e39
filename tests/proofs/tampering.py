"""Proof: whoever changes a value and makes all hashes of files anew that he can is found by `verify`.

He has every file, the run's secret too. He rewrites Parquet, manifests and seals; what stays are acknowledgement records
and, beside a compaction, the seals. Exports are compacted, compacted with tokens taken out, or as they were written.
"""

import random
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from tests.proofs.changes import CHANGES, effective
from tests.proofs.opened_files import Compacted, OpenedFile, Sealed
from tests.proofs.outcome import Outcome
from tests.proofs.random_exports import RichJob, all_rows, sealed_export, some_takedown
from tests.simulated_job.job import RUN_DIR
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.upkeep.compact import compact
from train_hooks.export_format.upkeep.takedown import take_out
from train_hooks.export_format.verify.run import verify

__all__ = ["KINDS", "Tampered", "prove_tampering", "tamper"]

KINDS = ("compacted", "taken down", "as written")
_A_BATCH = 25


@dataclass(frozen=True, slots=True)
class Tampered:
    """What was changed in a batch, and what of it `verify` did not find."""

    done: Counter[str]
    missed: list[str]


def tamper(kind: str, seed: int, count: int) -> Tampered:
    """`count` changes, each of a fresh copy of one export; each must be found."""
    job = sealed_export(seed, length=random.Random(seed).choice([1, 16, 40, 300]))
    _prepare(job, kind)
    files, rng = job.files, job.rng
    if kind != "as written":
        for opened in _files_of(job, kind):  # hashes that are made anew hold, so what is found later is the change
            opened.save(files)
    assert verify(RunReader(RUN_DIR, files)).exit_code != 1, "nothing was changed, and verify finds damage"
    done, missed = Counter[str](), list[str]()
    names = list(CHANGES)
    while done.total() < count:
        name = names[rng.randrange(len(names))]
        opened = rng.choice(_files_of(job, kind))
        before = effective(opened)
        said = CHANGES[name](rng, opened)
        if said is None:
            continue
        assert effective(opened) != before, f"{name} changed nothing: {said}"
        saved = opened.save(files)
        done[name] += 1
        if verify(RunReader(RUN_DIR, files)).exit_code != 1:
            missed.append(f"tampering, {kind}, seed {seed}, change {done.total()}: {said}")
        for path, data in saved.items():
            files.put(path, data)
    return Tampered(done, missed)


def _prepare(job: RichJob, kind: str) -> None:
    if kind == "as written":
        return
    compact(RunReader(RUN_DIR, job.files), row_group_bytes=job.rng.choice([1, 4000, 1 << 20]), level=1)
    if kind == "taken down":
        take_out(RunReader(RUN_DIR, job.files), some_takedown(job.rng, all_rows(job.files)))


def _files_of(job: RichJob, kind: str) -> list[OpenedFile]:
    """Of a random attempt: its compactions, for takedowns those that lost tokens, or its segment files."""
    attempt = job.rng.choice(RunReader(RUN_DIR, job.files).attempts())
    segment_files = [file for log in attempt.writers().values() for file in log.files if len(file.acks) > 2]
    if kind == "as written":
        return [Sealed.open(attempt, job.rng.choice(segment_files))]
    compacted = {file.compacted.path: file.compacted for file in segment_files if file.compacted is not None}
    rewritten = [each for each in compacted.values() if each.name.version]
    chosen = rewritten if kind == "taken down" and rewritten else list(compacted.values())
    return [Compacted.open(attempt, job.rng.choice(chosen))]


def prove_tampering(num_compacted: int, num_as_written: int, seed: int, jobs: int) -> Outcome:
    """So many changes of compacted exports, half of them with tokens taken out, and of segment files."""
    batches = [
        (kind, seed * 1_000_000 + number, min(_A_BATCH, count - at))
        for kind, count in zip(
            KINDS, (num_compacted - num_compacted // 2, num_compacted // 2, num_as_written), strict=True
        )
        for number, at in enumerate(range(0, count, _A_BATCH))
    ]
    with ProcessPoolExecutor(jobs) as pool:
        found = list(pool.map(tamper, *zip(*batches, strict=True)))
    done = sum((batch.done for batch in found), Counter[str]())
    missed = [text for batch in found for text in batch.missed]
    figure = {"changes": done.total(), "compacted": num_compacted, "as_written": num_as_written, "missed": len(missed)}
    return Outcome(figure={**figure, **{f"of_{name}": done[name] for name in CHANGES}}, failures=missed)
