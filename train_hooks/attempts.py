"""Starting a run and claiming an attempt: once, exclusively, by one process.

An attempt is claimed by making its directory, which only one process can do; its number is the next free one. Every
file of an attempt lies in that directory and its acknowledgement chain begins with the claim, so a process that outlived
its attempt can neither overwrite nor be believed. The parent and the resume step come from the model checkpoint (the
token that `ExportHook.state_dict` put there), never from a scheduler's counter.
"""

import hashlib
import os
import platform
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from train_hooks.export_format.errors import InputError, RunError
from train_hooks.export_format.filesystem import FileSystem
from train_hooks.export_format.json_files import (
    FORMAT_VERSION,
    read_run_info,
    write_attempt_info,
    write_once,
    write_run_info,
)
from train_hooks.export_format.lineage import lineage
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reader import RunReader
from train_hooks.export_format.records import RUN_ID, AttemptInfo, RunInfo

__all__ = ["ResumeToken", "RunSpec", "claim_attempt", "open_or_create_run"]

_VERSIONED = ("kiseki", "numpy", "pyarrow", "torch", "tokenizers")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """What the trainer says of its run. `vocab_size` bounds token ids; tokens are u16 up to 65,535 ids, else u32."""

    sequence_length: int
    vocab_size: int
    run_id: str | None = None
    tokenizer: Path | None = None
    config: Mapping[str, object]

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


def _sha256_of(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"expected a tokenizer file at {path}, found none")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _make_directories(file_system: FileSystem, path: Path) -> None:
    if not file_system.exists(path):
        _make_directories(file_system, path.parent)
        file_system.make_directory(path)
        file_system.sync_directory(path.parent)


def _create_run(file_system: FileSystem, paths: ExportPaths, spec: RunSpec) -> RunInfo:
    if spec.sequence_length < 1 or spec.vocab_size < 1:
        raise InputError(
            f"expected sequence_length and vocab_size ≥ 1, found {spec.sequence_length}, {spec.vocab_size}"
        )
    run_id = spec.run_id or _default_run_id(paths.run_dir)
    if RUN_ID.fullmatch(run_id) is None:
        raise InputError(f"run_id: expected letters, digits, '.', '_', '-' (at most 100), found {run_id!r}")
    _make_directories(file_system, paths.export)
    _make_directories(file_system, paths.attempts)
    _clear_unfinished(file_system, paths)
    tokenizer_file = tokenizer_sha256 = None
    if spec.tokenizer is not None:
        tokenizer_file, tokenizer_sha256 = spec.tokenizer.name, _sha256_of(spec.tokenizer)
        _make_directories(file_system, paths.tokenizer_dir)
        if not file_system.exists(paths.tokenizer_dir / tokenizer_file):
            write_once(file_system, paths.tokenizer_dir / tokenizer_file, spec.tokenizer.read_bytes())
    if not file_system.exists(paths.secret):
        write_once(file_system, paths.secret, secrets.token_hex(32).encode("ascii") + b"\n", mode=0o600)
    info = RunInfo(
        run_id=run_id,
        format_version=FORMAT_VERSION,
        created_unix_s=time.time(),
        sequence_length=spec.sequence_length,
        token_dtype=np.dtype(spec.token_dtype).name,
        vocab_size=spec.vocab_size,
        tokenizer_file=tokenizer_file,
        tokenizer_sha256=tokenizer_sha256,
        config=dict(spec.config),
        versions=package_versions(),
    )
    write_run_info(file_system, paths, info)
    return info


def _clear_unfinished(file_system: FileSystem, paths: ExportPaths) -> None:
    """A start that died before `run.json` left nothing that anybody relies on; a directory with attempts is not that."""
    if file_system.names(paths.attempts):
        raise RunError(
            f"{paths.export} has attempts but no {paths.run_json.name}; restore it from a copy, or give the training "
            "a run directory of its own"
        )


def _default_run_id(run_dir: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run_dir.resolve().name).strip("-._")
    return name[:100] or "run"


def claim_attempt(
    file_system: FileSystem,
    run_dir: Path,
    run: RunInfo,
    *,
    num_writers: int,
    resume: ResumeToken | None,
    config: Mapping[str, object],
    clock: Callable[[], float] = time.time,
) -> AttemptInfo:
    """Claims the next attempt. Raises InputError for a resume token of another run or of a step that was never committed."""
    paths = ExportPaths(run_dir)
    if resume is not None:
        _check_resume(RunReader(run_dir, file_system), resume)
    number = max(RunReader(run_dir, file_system).attempt_numbers(), default=0)
    while True:
        number += 1
        try:
            file_system.make_directory(paths.attempt_dir(number))
            break
        except FileExistsError:
            continue
    file_system.sync_directory(paths.attempts)
    info = AttemptInfo(
        run_id=run.run_id,
        attempt=number,
        parent_attempt=resume.attempt if resume else None,
        resume_step=resume.global_step if resume else 0,
        num_writers=num_writers,
        claim=secrets.token_hex(16),
        started_unix_s=clock(),
        host=f"{socket.gethostname()}:{os.getpid()}",
        config=dict(config),
        versions=package_versions(),
    )
    write_attempt_info(file_system, paths, info)
    return info


def _check_resume(run: RunReader, resume: ResumeToken) -> None:
    if resume.run_id != run.info.run_id:
        raise InputError(
            f"resume: the model checkpoint is of run {resume.run_id}, {run.paths.run_dir} holds run {run.info.run_id}; "
            "give the run directory that belongs to the checkpoint"
        )
    attempts = [attempt.info for attempt in run.attempts()]
    for interval in lineage(attempts, resume.attempt, resume.global_step):
        if interval.last_step is None:
            continue
        committed = run.attempt(interval.attempt).committed_steps()
        expected = interval.last_step - interval.first_step + 1
        found = sum(interval.first_step <= step <= interval.last_step for step in committed)
        if found != expected:
            raise InputError(
                f"resume: the model checkpoint is of step {resume.global_step}, but attempt {interval.attempt} has "
                f"acknowledged only {found} of steps {interval.first_step}–{interval.last_step}; call "
                "checkpoint_barrier(step) before a checkpoint is written, or resume from an earlier one"
            )
