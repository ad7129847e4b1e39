"""The small JSON files of a run, read and written whole."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from train_hooks.export_format.errors import DamageError, RunError
from train_hooks.export_format.filesystem import FileSystem
from train_hooks.export_format.paths import IN_PROGRESS, ExportPaths
from train_hooks.export_format.records import AttemptInfo, RunInfo

__all__ = ["FORMAT_NAME", "FORMAT_VERSION", "read_attempt_info", "read_run_info", "write_attempt_info", "write_once"]

FORMAT_NAME, FORMAT_VERSION = "kiseki-export", 1
Info = TypeVar("Info", RunInfo, AttemptInfo)


def write_once(file_system: FileSystem, path: Path, data: bytes, mode: int = 0o644) -> None:
    """A file that appears whole or not at all: written under another name, synced, renamed."""
    unfinished = path.with_name(path.name + IN_PROGRESS)
    file = file_system.create(unfinished, mode)
    try:
        file.write(data)
        file.datasync()
    finally:
        file.close()
    file_system.rename(unfinished, path)
    file_system.sync_directory(path.parent)


def _encode(info: RunInfo | AttemptInfo) -> bytes:
    document = {"format": FORMAT_NAME, **dataclasses.asdict(info)}
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def _decode(kind: type[Info], path: Path, data: bytes) -> Info:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise DamageError(f"{path} is not JSON ({error}); restore it from a copy of the export") from error
    if not isinstance(document, Mapping) or document.get("format") != FORMAT_NAME:
        raise RunError(f'{path} is not of a kiseki export: expected "format": "{FORMAT_NAME}"')
    names = {field.name for field in dataclasses.fields(kind)}
    missing = names - document.keys()
    if missing:
        raise DamageError(f"{path} lacks {', '.join(sorted(missing))}; restore it from a copy of the export")
    return kind(**{name: document[name] for name in names})


def read_run_info(file_system: FileSystem, paths: ExportPaths) -> RunInfo:
    """`run.json`. Raises RunError where the directory is no run of a version that we read."""
    if not file_system.exists(paths.run_json):
        raise RunError(
            f"{paths.run_dir} is not a run directory: expected {paths.run_json.relative_to(paths.run_dir)} in it, "
            "found none; give the directory that the training wrote its export to"
        )
    info = _decode(RunInfo, paths.run_json, file_system.read(paths.run_json))
    if info.format_version != FORMAT_VERSION:
        raise RunError(
            f"{paths.run_json}: expected export format version {FORMAT_VERSION}, found {info.format_version}; "
            "use a kiseki of that version"
        )
    return info


def write_run_info(file_system: FileSystem, paths: ExportPaths, info: RunInfo) -> None:
    """`run.json`, written last of the run's files: a directory without it is no run."""
    write_once(file_system, paths.run_json, _encode(info))


def read_attempt_info(file_system: FileSystem, paths: ExportPaths, attempt: int) -> AttemptInfo | None:
    """`attempt.json`, or None where the attempt was claimed and died before it said anything."""
    path = paths.attempt_json(attempt)
    if not file_system.exists(path):
        return None
    return _decode(AttemptInfo, path, file_system.read(path))


def write_attempt_info(file_system: FileSystem, paths: ExportPaths, info: AttemptInfo) -> None:
    """`attempt.json` of a claimed attempt."""
    write_once(file_system, paths.attempt_json(info.attempt), _encode(info))
