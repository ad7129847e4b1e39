"""What `kiseki doctor` looks at: an installation, and a run. Each check says what it found and, where needed, what to do.

The verdicts: `fine`; `note`, something that works less well than it could, or that nobody may have meant; `wrong`,
something that does not work. A check that fails by an error that is meant gives its text; it stops no other.
"""

import contextlib
import fcntl
import importlib.metadata
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

import kiseki
from indexer.reader import IndexReader
from indexer.selection.rows import Selection
from indexer.selection.tombstones import TombstoneFile
from indexer.spans.build import build_span_arrays
from indexer.spans.group import maximal_spans
from indexer.storage.generations import published
from indexer.storage.paths import IndexPaths
from indexer.trace.trace import TraceOptions, trace
from kiseki.own_packages import OWN, overwritten_by
from train_hooks.export_format.errors import DamageError, KisekiError
from train_hooks.export_format.origin import origin_of
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.upkeep.status import status
from ui.kernels import kernel_directory

__all__ = ["Check", "check_installation", "check_run"]

Verdict = Literal["fine", "note", "wrong"]
EXTRAS = (("torch", "train"), ("fastapi", "serve"), ("uvicorn", "serve"), ("streamlit", "ui"), ("httpx", "client"))
NEEDED = ("numpy", "pyarrow", "numba", "duckdb", "tantivy", "tokenizers")
FREE_SHARE, FILES_A_SHARD = 0.05, 8
PROBE_TOKENS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was looked at. `do` is empty where nothing need be done."""

    name: str
    verdict: Verdict
    found: str
    do: str = ""


def check_installation() -> Iterator[Check]:
    """Python, packages, compiled kernels, and a search of a small index on this machine."""
    yield Check(name="python", verdict="fine", found=f"{sys.version.split()[0]}, kiseki {kiseki.__version__}")
    yield _check_own_packages()
    yield Check(name="packages", verdict="fine", found=", ".join(f"{name} {_version(name)}" for name in NEEDED))
    for name, extra in EXTRAS:
        found = _version(name)
        yield Check(
            name=name,
            verdict="fine" if found else "note",
            found=found or "is not installed",
            do="" if found else f"where it is needed: pip install 'kiseki[{extra}]'",
        )
    yield _guarded("compiled kernels", _check_kernel_cache)
    yield _guarded("span search", _check_search)
    yield Check(
        name="machine",
        verdict="fine",
        found=f"{len(os.sched_getaffinity(0))} cores, {_gigabytes(_memory_bytes())} of memory, at most "
        f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,} open files",
    )


def check_run(run_dir: Path) -> Iterator[Check]:
    """A run's export and index: is each part there, sound at a glance, up to date, and does it answer?

    It reads records, not rows: `kiseki export verify` and `kiseki index --verify` read everything.
    """
    try:
        run = RunReader(run_dir)
    except KisekiError as error:
        yield Check(name="run", verdict="wrong", found=str(error), do="give the directory that holds export/run.json")
        return
    info = run.info
    most = "at most " if info.shorter_rows else ""
    yield Check(
        name="run",
        verdict="fine",
        found=f"{info.run_id}: sequences of {most}{info.sequence_length:,} tokens, vocabulary {info.vocab_size:,}; "
        f"{origin_of(info).sentence()}",
    )
    yield _guarded("tokenizer", lambda: _check_tokenizer(run))
    yield _guarded("secret", lambda: _check_secret(run))
    yield _guarded("export", lambda: _check_export(run))
    yield _guarded("disk", lambda: _check_disk(run_dir))
    yield _guarded("locks", lambda: _check_locks(run))
    yield _guarded("tombstones", lambda: _check_tombstones(run_dir))
    yield _guarded("index", lambda: _check_index(run))
    if published(IndexPaths(run_dir)) is not None:
        yield _guarded("trace", lambda: _check_trace(run_dir))
        yield _guarded("catalog", lambda: _check_catalog(run_dir))


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (KisekiError, OSError) as error:
        return Check(name=name, verdict="wrong", found=str(error))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _check_own_packages() -> Check:
    others = {package: overwritten_by(package) for package in OWN}
    named = [f"`{package}` by {', '.join(owners)}" for package, owners in others.items() if owners]
    if not named:
        return Check(name="own packages", verdict="fine", found=f"{', '.join(OWN)} are kiseki's alone")
    return Check(
        name="own packages",
        verdict="wrong",
        found=f"other distributions have files in packages of kiseki: {'; '.join(named)}",
        do="install kiseki into an environment of its own, or remove them and reinstall kiseki",
    )


def _check_kernel_cache() -> Check:
    directory = kernel_directory()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=existing):
        return Check(name="compiled kernels", verdict="fine", found=f"are kept in {directory}")
    return Check(
        name="compiled kernels",
        verdict="note",
        found=f"cannot be kept in {directory}: each process compiles them anew, for half a minute",
        do="set NUMBA_CACHE_DIR to a directory that can be written",
    )


def _check_search() -> Check:
    rows = np.random.default_rng(0).integers(0, 50_000, (64, 256), np.uint16)
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        arrays = build_span_arrays(rows, np.uint16, Path(directory))
        found = maximal_spans(arrays, rows[40, 100:180], 8)
        took_s = time.perf_counter() - began
    spans = list(zip(found.start.tolist(), found.end.tolist(), found.count.tolist(), strict=True))
    if spans != [(0, 80, 1)]:
        return Check(
            name="span search", verdict="wrong", found=f"expected one span of 80 tokens in a small index, found {spans}",
            do="delete the compiled kernels (see above), and report it if that does not help",
        )  # fmt: skip
    return Check(name="span search", verdict="fine", found=f"a small index was built and searched in {took_s:.1f} s")


def _check_tokenizer(run: RunReader) -> Check:
    if run.info.tokenizer_file is None:
        return Check(
            name="tokenizer", verdict="note", found="the export has none: token ids can be searched, text cannot",
            do="give RunSpec(tokenizer=…) from the next run on; until then `kiseki trace --tokenizer FILE`",
        )  # fmt: skip
    path = run.tokenizer_path()
    return Check(name="tokenizer", verdict="fine", found=f"{path.name}, of the hash that the run recorded")


def _check_secret(run: RunReader) -> Check:
    if not run.paths.secret.exists():
        return Check(
            name="secret", verdict="note", found="is not here: rows cannot be held against their leaves",
            do="fetch export/run_secret.hex from whoever trained, if you are to verify rows",
        )  # fmt: skip
    run.secret()
    mode = run.paths.secret.stat().st_mode & 0o777
    return Check(
        name="secret",
        verdict="note" if mode & 0o077 else "fine",
        found="of the hash that the run recorded" + (f"; others can read it (mode {mode:o})" if mode & 0o077 else ""),
        do=f"chmod 600 {run.paths.secret}, unless it was published on purpose" if mode & 0o077 else "",
    )


def _check_export(run: RunReader) -> Check:
    found = status(run)
    newest = "no committed step yet" if found.newest_committed_step is None else f"step {found.newest_committed_step:,}"
    text = f"{len(found.attempts)} attempts, {newest}, {found.num_rows:,} sequences"
    crashed = [item.attempt for item in found.attempts if item.state == "crashed" and item.num_unsealed]
    if found.num_gaps:
        return Check(
            name="export", verdict="wrong", found=f"{text}; {found.num_gaps} gaps: rows that were not exported",
            do="`kiseki export verify` says which; they are gone",
        )  # fmt: skip
    if crashed:
        return Check(
            name="export", verdict="note", found=f"{text}; attempt {crashed[-1]} ended without closing its files",
            do="if no training is to resume there: kiseki export repair",
        )  # fmt: skip
    behind = "" if found.lag_s is None else f"; the newest record is {found.lag_s:,.0f} s old"
    return Check(name="export", verdict="fine", found=text + behind)


def _check_disk(run_dir: Path) -> Check:
    usage = shutil.disk_usage(run_dir)
    low = usage.free < FREE_SHARE * usage.total
    return Check(
        name="disk",
        verdict="note" if low else "fine",
        found=f"{_gigabytes(usage.free)} of {_gigabytes(usage.total)} are free",
        do="a full disk stops the training: make room, or `kiseki export compact`" if low else "",
    )


def _check_locks(run: RunReader) -> Check:
    with run.paths.run_json.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError as error:
            return Check(
                name="locks", verdict="note", found=f"this file system has none ({error.strerror})",
                do="`kiseki export repair` cannot tell a crash from a slow writer here: --assume-dead when you know",
            )  # fmt: skip
    return Check(name="locks", verdict="fine", found="this file system has file locks")


def _check_tombstones(run_dir: Path) -> Check:
    tombstones = TombstoneFile(IndexPaths(run_dir))
    in_force = tombstones.in_force()
    waiting = sum(item.removed_unix_s is None for item in in_force)
    return Check(
        name="tombstones",
        verdict="fine",
        found=f"{len(in_force)} in force" + (f"; the tokens of {waiting} are still on disk" if waiting else ""),
        do="to take them out for good: kiseki tombstone finish" if waiting else "",
    )


def _check_index(run: RunReader) -> Check:
    paths = IndexPaths(run.paths.run_dir)
    generation = published(paths)
    if generation is None:
        return Check(name="index", verdict="note", found="there is none yet", do=f"kiseki index {paths.run_dir}")
    reader = IndexReader.open(paths.run_dir)
    if reader.failed:
        raise DamageError(f"{reader.failed[0]} ({len(reader.failed)} such shards); run `kiseki index --verify`")
    behind = sum(
        step > generation.covered.get(attempt.info.attempt, attempt.info.resume_step)
        for attempt in run.attempts()
        for step in attempt.committed_steps()
    )
    limit, wanted = resource.getrlimit(resource.RLIMIT_NOFILE)[0], FILES_A_SHARD * len(reader.shards) + 256
    text = f"generation {generation.number}, {len(reader.shards)} shards"
    if wanted > limit:
        return Check(
            name="index", verdict="note", found=f"{text} may want {wanted:,} open files, {limit:,} are allowed",
            do=f"ulimit -n {wanted}",
        )  # fmt: skip
    if behind:
        return Check(
            name="index", verdict="note", found=f"{text}; {behind:,} committed steps are not in it",
            do=f"kiseki index {paths.run_dir}, with --follow while training goes on",
        )  # fmt: skip
    return Check(name="index", verdict="fine", found=f"{text}, all committed steps")


def _check_trace(run_dir: Path) -> Check:
    reader, hidden = IndexReader.open(run_dir), TombstoneFile(IndexPaths(run_dir)).visibility()
    shard = reader.shards[-1]
    newest = (reader.sequence_at(shard, ordinal) for ordinal in reversed(range(shard.info.num_sequences)))
    probe = next((each for each in newest if not reader.describe(each, hidden)["redacted"]), None)
    if probe is None:
        return Check(name="trace", verdict="note", found="tombstones hide all of the newest shard: nothing to look for")
    tokens = probe.tokens[:PROBE_TOKENS]
    options = TraceOptions(min_length=len(tokens), selection=Selection(lineage="all"))
    began = time.perf_counter()
    found = trace(reader, token_ids=tokens.tolist(), options=options)
    took_ms = (time.perf_counter() - began) * 1e3
    if not any((span.start, span.end) == (0, len(tokens)) for span in found.spans):
        return Check(
            name="trace", verdict="wrong", found=f"the first {len(tokens)} tokens of {probe.address} were not found",
            do=f"kiseki index {run_dir} --verify",
        )  # fmt: skip
    return Check(name="trace", verdict="fine", found=f"the beginning of {probe.address} was found in {took_ms:.0f} ms")


def _check_catalog(run_dir: Path) -> Check:
    reader = IndexReader.open(run_dir)
    rows = reader.sql("SELECT count(*) AS n FROM sequences")
    expected = sum(shard.info.num_sequences for shard in reader.shards)
    if rows[0]["n"] != expected:
        return Check(
            name="catalog", verdict="wrong", found=f"expected {expected:,} sequences, found {rows[0]['n']:,}",
            do=f"kiseki index {run_dir} --verify",
        )  # fmt: skip
    return Check(name="catalog", verdict="fine", found=f"{expected:,} sequences")


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.1f} GB"
