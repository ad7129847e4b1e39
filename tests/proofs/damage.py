"""Proof: whatever is damaged in an export, `verify` finds and names it.

One bit is flipped; a file is cut, deleted, doubled, copied over another of its kind, or swapped with one. The exports are
of format 3, with barrier records: sealed, compacted, compacted with tokens taken out, and growing.

What the format promises of a growing export: its sealed files, and what barrier records cover of the open ones. So
the growing ones here have a barrier at the newest step, and nothing behind it. Deleted barrier records are not found,
nor is a double that no reader takes for a file of the export.
"""

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.proofs.outcome import Outcome
from tests.proofs.random_exports import all_rows, sealed_export, some_takedown
from tests.simulated_job.job import RUN_DIR
from tests.simulated_job.memory_files import MemoryFileSystem
from train_hooks.export_format.paths import IN_PROGRESS, SegmentFileName
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.upkeep.compact import compact
from train_hooks.export_format.upkeep.takedown import take_out
from train_hooks.export_format.verify.findings import Severity
from train_hooks.export_format.verify.run import verify

__all__ = ["EXPORTS", "KINDS", "damaged_export", "prove_damage"]

EXPORTS = ("sealed", "compacted", "taken down", "growing")
KINDS = ("flip", "flip", "flip", "flip", "flip", "cut", "delete", "double", "copy", "swap")
_A_BATCH = 50
Contents = Mapping[Path, bytes]
Damage = dict[Path, bytes | None]


@dataclass(frozen=True, slots=True)
class Damaged:
    """What was damaged in a batch, and what of it `verify` did not find or name."""

    done: Counter[str]
    missed: list[str]


def damaged_export(kind: str, seed: int, count: int) -> Damaged:
    """`count` damages of one export, each of its undamaged files."""
    files = _export(kind, seed)
    rng, contents = random.Random(seed), files.contents(RUN_DIR)
    done, missed = Counter[str](), list[str]()
    assert verify(RunReader(RUN_DIR, files)).exit_code != 1, "nothing was damaged, and verify finds damage"
    while done.total() < count:
        name = rng.choice(KINDS)
        damage = _DAMAGES[name](rng, contents)
        if not any(contents.get(path) != data for path, data in damage.items()):
            continue
        for path, data in damage.items():
            files.put(path, data)
        done[name] += 1
        if not _is_named(files, damage):
            what = ", ".join(path.name for path in damage)
            missed.append(f"damage, {kind}, seed {seed}, number {done.total()}: {name} of {what}")
        for path in damage:
            files.put(path, contents.get(path))
    return Damaged(done, missed)


def _export(kind: str, seed: int) -> MemoryFileSystem:
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = Path(directory) / "tokenizer.json"
        tokenizer.write_text('{"model": "none"}')
        length = random.Random(seed).choice([1, 16, 40, 300])
        job = sealed_export(seed, close=kind != "growing", tokenizer=tokenizer, length=length)
    if kind in ("compacted", "taken down"):
        compact(RunReader(RUN_DIR, job.files), row_group_bytes=job.rng.choice([1, 4000, 1 << 20]), level=1)
    if kind == "taken down":
        take_out(RunReader(RUN_DIR, job.files), some_takedown(job.rng, all_rows(job.files)))
    return job.files


def _is_named(files: MemoryFileSystem, damage: Damage) -> bool:
    """Whether `verify` finds damage and names one of the files. A run without run.json is refused as no run."""
    if not files.exists(RUN_DIR / "export" / "run.json"):
        return True
    report = verify(RUN_DIR, file_system=files)
    text = "".join(f"{finding.path} {finding.message}\n" for finding in report.findings)
    return bool(report.of(Severity.DAMAGED)) and any(_stem(path) in text for path in damage)


def _stem(path: Path) -> str:
    """What a finding says of a file, or of another one with the same number."""
    name = path.name.removesuffix(IN_PROGRESS)
    parsed = SegmentFileName.parse(name)
    return name if parsed is None else f"{parsed[0].stem}."


def flip(rng: random.Random, contents: Contents) -> Damage:
    """One bit of a file."""
    path = rng.choice([path for path, data in contents.items() if data])
    bit, data = rng.randrange(len(contents[path]) * 8), bytearray(contents[path])
    data[bit // 8] ^= 1 << bit % 8
    return {path: bytes(data)}


def cut(rng: random.Random, contents: Contents) -> Damage:
    """The end of a file is gone."""
    path = rng.choice([path for path, data in contents.items() if data])
    return {path: contents[path][: rng.randrange(len(contents[path]))]}


def delete(rng: random.Random, contents: Contents) -> Damage:
    """A file is gone."""
    return {rng.choice([path for path in contents if not path.name.startswith("barrier-")]): None}


def copy(rng: random.Random, contents: Contents) -> Damage:
    """A file over another of its kind."""
    path, other = _two_of_a_kind(rng, contents)
    return {path: contents[other]}


def swap(rng: random.Random, contents: Contents) -> Damage:
    """Two files of a kind have each other's names."""
    path, other = _two_of_a_kind(rng, contents)
    return {path: contents[other], other: contents[path]}


def _two_of_a_kind(rng: random.Random, contents: Contents) -> Sequence[Path]:
    kinds: dict[str, list[Path]] = {}
    for path in contents:
        kind = path.name.removesuffix(IN_PROGRESS).partition(".")[2]
        kinds.setdefault("barrier" if path.name.startswith("barrier-") else kind, []).append(path)
    several = [paths for paths in kinds.values() if len(paths) > 1]
    return rng.sample(rng.choice(several), 2)


def double(rng: random.Random, contents: Contents) -> Damage:
    """A file of a finished name beside itself as unfinished, or as the next file of its writer, or of a later attempt."""
    path = rng.choice([path for path in contents if not path.name.endswith(IN_PROGRESS)])
    parsed = SegmentFileName.parse(path.name)
    if parsed is None or rng.random() < 0.5:
        return {path.with_name(path.name + IN_PROGRESS): contents[path]}
    numbers = [found[0].number for other in contents if (found := SegmentFileName.parse(other.name))
               and other.parent == path.parent and found[0].dp_rank == parsed[0].dp_rank]  # fmt: skip
    target = SegmentFileName(dp_rank=parsed[0].dp_rank, number=max(numbers) + 1)
    return {path.with_name(f"{target.stem}.{parsed[1]}"): contents[path]}


_DAMAGES: Mapping[str, Callable[[random.Random, Contents], Damage]] = {
    "flip": flip, "cut": cut, "delete": delete, "double": double, "copy": copy, "swap": swap,
}  # fmt: skip


def prove_damage(count: int, seed: int, jobs: int) -> Outcome:
    """So many damages, of the four kinds of exports in equal parts."""
    batches = [
        (EXPORTS[number % len(EXPORTS)], seed * 1_000_000 + number, min(_A_BATCH, count - at))
        for number, at in enumerate(range(0, count, _A_BATCH))
    ]
    with ProcessPoolExecutor(jobs) as pool:
        found = list(pool.map(damaged_export, *zip(*batches, strict=True)))
    done = sum((batch.done for batch in found), Counter[str]())
    missed = [text for batch in found for text in batch.missed]
    figure = {"damages": done.total(), "found": done.total() - len(missed), "missed": len(missed)}
    return Outcome(figure={**figure, **{f"of_{name}": done[name] for name in _DAMAGES}}, failures=missed)
