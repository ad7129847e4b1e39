"""Damage a finished export in ten thousand random ways; `verify` must find and name each.

    python bench/export_damage.py --num 10000 --seed 1

Kinds: one flipped bit, a cut, a deleted file, a file copied over another of its kind, two files swapped. Half of the export
that is damaged is compacted. Exit code 1 where one was not found, not named, or made `verify` fail otherwise.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.example_exports import write_export
from train_hooks.export_format.compact import compact
from train_hooks.export_format.findings import Severity
from train_hooks.export_format.reader import RunReader
from train_hooks.export_format.verify import verify

KINDS = ("flip", "flip", "flip", "flip", "flip", "flip", "cut", "delete", "copy", "swap")


def damage(rng: random.Random, kind: str, files: list[Path]) -> dict[Path, bytes]:
    """Damage files in place; gives back what they held."""
    path = rng.choice(files)
    content = path.read_bytes()
    others = [other for other in files if other != path and other.suffix == path.suffix]
    if kind in ("copy", "swap") and others:
        other = rng.choice(others)
        saved = {path: content, other: other.read_bytes()}
        if saved[path] != saved[other]:
            path.write_bytes(saved[other])
            if kind == "swap":
                other.write_bytes(content)
            return saved
    if kind == "delete":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        bit = rng.randrange(len(content) * 8)
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
    return {path: content}


def named(run_dir: Path, paths: list[Path]) -> bool:
    """Whether `verify` finds damage and names one of the files. A run without run.json is refused as no run."""
    if not (run_dir / "export" / "run.json").exists():
        return True
    report = verify(run_dir)
    text = "".join(f"{finding.path} {finding.message}\n" for finding in report.of(Severity.DAMAGED))
    return any(path.name in text for path in paths)


def main() -> int:
    """Exit code 0 where all were found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    done: Counter[str] = Counter()
    missed = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        runs = [Path(directory) / name / "run" for name in ("sealed", "compacted")]
        for run_dir in runs:
            write_export(run_dir, tokenizer=True)
        compact(RunReader(runs[1]), row_group_bytes=1000)
        files = [sorted(path for path in (run / "export").rglob("*") if path.is_file()) for run in runs]
        for number in range(options.num):
            which, kind = number % 2, rng.choice(KINDS)
            saved = damage(rng, kind, files[which])
            if not named(runs[which], list(saved)):
                missed.append(f"{kind} {', '.join(path.name for path in saved)}")
            for path, content in saved.items():
                path.write_bytes(content)
            done[kind] += 1
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{options.num} damages {dict(done)}: {options.num - len(missed)} found and named, "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    for text in missed[:20]:
        print("missed:", text)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
