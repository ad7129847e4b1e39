"""Starting a run and claiming an attempt: once, exclusively, by one process.

A run is made in a directory of its own beside `export/` and renamed to it when it is whole and durable. A rename to a
directory that is not empty fails, so of two processes that start the same run one makes it and the other opens it,
and a start that died leaves nothing that a later one could stumble over.

An attempt is claimed by making its directory, which only one process can do; its number is the next free one. Every
file of an attempt lies in that directory and its acknowledgement chain begins with the claim, so a process that
outlived its attempt can neither overwrite nor be believed. The parent and the resume step come from the model
checkpoint (the token that `ExportHook.state_dict` put there), never from a scheduler's counter.
"""

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from train_hooks.export_format.errors import InputError, RunError
from train_hooks.export_format.filesystem import FileSystem
from train_hooks.export_format.json_files import (
    plain_json,
    read_run_info,
    write_attempt_info,
    write_once,
    write_run_info,
)
from train_hooks.export_format.lineage import StepInterval, lineage
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import AttemptReader, RunReader
from train_hooks.export_format.reading.summaries import summarize
from train_hooks.export_format.records import (
    FORMAT_VERSION,
    RUN_ID,
    AttemptInfo,
    Evidence,
    EvidenceDefaults,
    Matched,
    RunInfo,
    TensorScope,
)
from train_hooks.export_format.removal import removal_of
from train_hooks.export_format.tensors import as_current_tensor

__all__ = ["DECLARED", "ResumeToken", "RunSpec", "claim_attempt", "open_or_create_run"]

DECLARED = EvidenceDefaults(evidence=Evidence.DECLARED, tensor_evidence=Evidence.DECLARED, matched=Matched.COUNT)
"""Of rows that a trainer or an importer hands over, without a forward that could be looked at."""

_VERSIONED = ("kiseki", "numpy", "pyarrow", "torch", "tokenizers")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """What the trainer says of its run. `vocab_size` bounds token ids; tokens are u16 up to 65,535 ids, else u32.

    shorter_rows: whether rows may have fewer tokens than sequence_length.
    """

    sequence_length: int
    vocab_size: int
    run_id: str | None = None
    tokenizer: Path | None = None
    config: Mapping[str, object]
    shorter_rows: bool = False

    @property
    def token_dtype(self) -> str:
        """u16 keeps its highest value free for the index's separator."""
        return "uint16" if self.vocab_size <= 65_535 else "uint32"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumeToken:
    """What a model checkpoint says of the export: which attempt wrote it, after which step."""

    run_id: str
    attempt: int
    global_step: int

    @classmethod
    def from_state(cls, state: Mapping[str, object]) -> "ResumeToken":
        """From `ExportHook.state_dict()`. Raises InputError where it is something else."""
        run_id, attempt, step = state.get("run_id"), state.get("attempt"), state.get("global_step")
        if not isinstance(run_id, str) or not isinstance(attempt, int) or not isinstance(step, int):
            raise InputError(
                "resume: expected the dict that ExportHook.state_dict() put into the model checkpoint "
                f"(run_id, attempt, global_step), found keys {sorted(state)}"
            )
        return cls(run_id=run_id, attempt=attempt, global_step=step)


def package_versions() -> dict[str, str]:
    """Versions of what shaped the export, and of Python."""
    return dict(_package_versions())


@functools.cache
def _package_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def open_or_create_run(file_system: FileSystem, run_dir: Path, spec: RunSpec) -> RunInfo:
    """The run in `run_dir`, made if there is none. Raises RunError where the one there is another run than `spec` says."""
    paths = ExportPaths(run_dir)
    if file_system.exists(paths.run_json):
        info = read_run_info(file_system, paths)
        _check_same_run(info, spec, paths)
        for directory in (paths.run_dir, paths.run_dir.parent):  # whoever made it may have died before it did so
            file_system.sync_directory(directory)
        return info
    return _create_run(file_system, paths, spec)


def _check_same_run(info: RunInfo, spec: RunSpec, paths: ExportPaths) -> None:
    tokenizer_sha256 = _sha256_of(spec.tokenizer) if spec.tokenizer else None
    for name, expected, found in (
        ("run_id", info.run_id, spec.run_id or info.run_id),
        ("sequence_length", info.sequence_length, spec.sequence_length),
        ("vocab_size", info.vocab_size, spec.vocab_size),
        ("tokenizer SHA-256", info.tokenizer_sha256, tokenizer_sha256),
    ):
        if expected != found:
            raise RunError(
                f"{paths.run_dir} holds run {info.run_id} with {name} {expected}, this training has {found}; "
                "give the training a run directory of its own"
            )
    if info.shorter_rows != spec.shorter_rows:
        of_run = f"of at most {info.sequence_length}" if info.shorter_rows else f"of {info.sequence_length}"
        raise RunError(
            f"{paths.run_dir} holds run {info.run_id} with sequences {of_run} tokens, this training was attached with "
            f"shorter_rows={spec.shorter_rows}; attach with shorter_rows={info.shorter_rows}, or give the training a run "
            "directory of its own"
        )


def _sha256_of(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"expected a tokenizer file at {path}, found none")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _make_directories(file_system: FileSystem, path: Path) -> None:
    if file_system.exists(path):
        return
    _make_directories(file_system, path.parent)
    with contextlib.suppress(FileExistsError):
        file_system.make_directory(path)
    file_system.sync_directory(path.parent)


def _create_run(file_system: FileSystem, paths: ExportPaths, spec: RunSpec) -> RunInfo:
    _check_spec(spec)
    run_id = spec.run_id or _default_run_id(paths.run_dir)
    if RUN_ID.fullmatch(run_id) is None:
        raise InputError(f"run_id: expected letters, digits, '.', '_', '-' (at most 100), found {run_id!r}")
    _make_directories(file_system, paths.run_dir)
    file_system.sync_directory(paths.run_dir.parent)  # whoever made it may have died before it did so
    if file_system.exists(paths.export) and file_system.names(paths.export):
        if file_system.exists(paths.run_json):  # another process was faster
            return open_or_create_run(file_system, paths.run_dir, spec)
        raise RunError(
            f"{paths.export} is not empty and has no {paths.run_json.name}; restore it from a copy, or give the training "
            "a run directory of its own"
        )
    unfinished = paths.unfinished_export(secrets.token_hex(8))
    _write_run(file_system, paths, unfinished, run_id, spec)
    try:
        file_system.rename(unfinished, paths.export)
    except OSError:
        if not file_system.exists(paths.run_json):
            raise
        return open_or_create_run(file_system, paths.run_dir, spec)  # another process was faster
    file_system.sync_directory(paths.run_dir)
    return read_run_info(file_system, paths)


def _check_spec(spec: RunSpec) -> None:
    for name, value, highest in (
        ("sequence_length", spec.sequence_length, 1 << 28),
        ("vocab_size", spec.vocab_size, 1 << 32),
    ):
        if not 1 <= value <= highest:
            raise InputError(f"{name}: expected a number from 1 to {highest}, found {value}")


def _write_run(file_system: FileSystem, paths: ExportPaths, root: Path, run_id: str, spec: RunSpec) -> None:
    def here(path: Path) -> Path:
        return root / path.relative_to(paths.export)

    file_system.make_directory(root)
    file_system.make_directory(here(paths.attempts))
    tokenizer_file = tokenizer_sha256 = None
    if spec.tokenizer is not None:
        tokenizer_sha256 = _sha256_of(spec.tokenizer)
        tokenizer_file, content = spec.tokenizer.name, spec.tokenizer.read_bytes()
        file_system.make_directory(here(paths.tokenizer_dir))
        write_once(file_system, here(paths.tokenizer_dir) / tokenizer_file, content)
    secret = secrets.token_hex(32).encode("ascii") + b"\n"
    write_once(file_system, here(paths.secret), secret, mode=0o600)
    info = RunInfo(
        run_id=run_id,
        format_version=FORMAT_VERSION,
        shorter_rows=spec.shorter_rows,
        created_unix_s=time.time(),
        sequence_length=int(spec.sequence_length),
        token_dtype=np.dtype(spec.token_dtype).name,
        vocab_size=int(spec.vocab_size),
        tokenizer_file=tokenizer_file,
        tokenizer_sha256=tokenizer_sha256,
        config=_plain(spec.config),
        versions=package_versions(),
        secret_sha256=hashlib.sha256(secret).hexdigest(),
    )
    write_run_info(file_system, here(paths.run_json), info)


def _plain(config: Mapping[str, object]) -> dict[str, object]:
    return {str(key): plain_json(value) for key, value in config.items()}


def _default_run_id(run_dir: Path) -> str:
    """The directory's name. Where letters of it cannot be in a run id, digits of its hash tell it from others."""
    whole = run_dir.resolve().name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", whole).strip("-._")
    if whole.isascii() and name:
        return name[:100]
    return f"{(name or 'run')[:87]}-{hashlib.sha256(whole.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def claim_attempt(
    file_system: FileSystem,
    run_dir: Path,
    run: RunInfo,
    *,
    num_writers: int,
    resume: ResumeToken | None,
    config: Mapping[str, object],
    defaults: EvidenceDefaults = DECLARED,
    microbatch_tensors: Collection[str] = (),
    clock: Callable[[], float] = time.time,
) -> AttemptInfo:
    """Claims the next attempt, in the current format, whatever those before it have.

    defaults: how its rows are known where they do not say. microbatch_tensors: names of tensors that belong to the
    micro-batch as a whole; of others the parent attempt's decisions hold. Raises InputError for a resume token of
    another run or of a step that was never committed, RunError where an attempt before it is of a later format than
    ours.
    """
    paths = ExportPaths(run_dir)
    if num_writers < 1:
        raise InputError(f"num_writers: expected at least 1, found {num_writers}")
    reader = RunReader(run_dir, file_system)
    reader.attempts()  # none of a format that we do not know
    if resume is not None:
        _check_resume(reader, resume)
    scopes = {} if resume is None else _scopes_of(reader.attempt(resume.attempt))
    scopes |= dict.fromkeys(microbatch_tensors, TensorScope.MICROBATCH)
    number = _claim_number(file_system, paths, reader)
    info = AttemptInfo(
        run_id=run.run_id,
        attempt=number,
        parent_attempt=resume.attempt if resume else None,
        resume_step=resume.global_step if resume else 0,
        num_writers=num_writers,
        claim=secrets.token_hex(16),
        started_unix_s=clock(),
        host=f"{socket.gethostname()}:{os.getpid()}",
        config=_plain(config),
        versions=package_versions(),
        run_sha256=_sha256(file_system, paths.run_json),
        parent_sha256=_sha256(file_system, paths.attempt_json(resume.attempt)) if resume else None,
        default_evidence=defaults.evidence,
        default_tensor_evidence=defaults.tensor_evidence,
        default_matched=defaults.matched,
        tensor_scopes=scopes,
    )
    write_attempt_info(file_system, paths, info)
    return info


def _claim_number(file_system: FileSystem, paths: ExportPaths, run: RunReader) -> int:
    """The next free number. Names before it are durable first, so that a hole in the numbers is always a loss."""
    number = max(run.attempt_numbers(), default=0)
    while True:
        file_system.sync_directory(paths.attempts)
        number += 1
        with contextlib.suppress(FileExistsError):
            file_system.make_directory(paths.attempt_dir(number))
            break
    file_system.sync_directory(paths.attempts)
    return number


def _sha256(file_system: FileSystem, path: Path) -> str:
    return hashlib.sha256(file_system.read(path)).hexdigest()


def _check_resume(run: RunReader, resume: ResumeToken) -> None:
    if resume.run_id != run.info.run_id:
        raise InputError(
            f"resume: the model checkpoint is of run {resume.run_id}, {run.paths.run_dir} holds run {run.info.run_id}; "
            "give the run directory that belongs to the checkpoint"
        )
    if resume.global_step < 0:
        raise InputError(f"resume: expected a global step of at least 0, found {resume.global_step}")
    attempts = {attempt.info.attempt: attempt for attempt in run.attempts()}
    for interval in lineage([attempt.info for attempt in attempts.values()], resume.attempt, resume.global_step):
        if interval.last_step is not None:
            _check_interval(attempts[interval.attempt], interval, resume)


def _check_interval(attempt: AttemptReader, interval: StepInterval, resume: ResumeToken) -> None:
    """A barrier record is enough; where there is none, the summaries of the seals and the records of open files are."""
    last = interval.last_step or 0
    if (attempt.barrier_step() or 0) >= last and attempt.dp_ranks() == set(range(attempt.info.num_writers)):
        return
    committed = summarize(attempt).committed
    if last not in committed:
        found = f"steps {committed.start} to {committed.stop - 1}" if committed else "none"
        raise InputError(
            f"resume: the model checkpoint is of step {resume.global_step} and needs steps {interval.first_step} to {last} "
            f"of attempt {interval.attempt}; every writer has acknowledged {found}; call checkpoint_barrier(step) before "
            "a checkpoint is written, or resume from an earlier one"
        )


def _scopes_of(attempt: AttemptReader) -> dict[str, TensorScope]:
    """What an attempt decided of its tensors: what it was told, and what the first rows of its first writer show."""
    found = dict(attempt.info.tensor_scopes)
    frame = attempt.first_frame(0)
    for row in [] if frame is None else attempt.rows(frame):
        if removal_of(row) is None:
            for record in row.tensors:
                tensor = as_current_tensor(record, row.format_version)
                found.setdefault(tensor.name, TensorScope.MICROBATCH if tensor.whole else TensorScope.ROW)
    return found
