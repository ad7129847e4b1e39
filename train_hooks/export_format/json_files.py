"""The small JSON files of a run: written once, read whole, each with a hash of itself.

The last key of every such file is "sha256": the SHA-256, in lower-case hex, of the file's own bytes with these 64 digits
replaced by 64 zeros. So a change of any byte is seen before anything is parsed, without a canonical form of JSON.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from train_hooks.export_format.errors import DamageError, RunError
from train_hooks.export_format.filesystem import FileSystem
from train_hooks.export_format.paths import IN_PROGRESS, ExportPaths
from train_hooks.export_format.records import AttemptInfo, RunInfo

__all__ = [
    "FORMAT_NAME",
    "FORMAT_VERSIONS",
    "decode_document",
    "encode_document",
    "info_sha256",
    "plain_json",
    "read_attempt_info",
    "read_run_info",
    "write_attempt_info",
    "write_once",
    "write_run_info",
]

FORMAT_NAME, FORMAT_VERSIONS = "kiseki-export", (1, 2)
ATTEMPT_FORMAT = "kiseki-attempt-v1"
Info = TypeVar("Info", RunInfo, AttemptInfo)
_HEAD, _ZEROS, _TAIL = b'"sha256": "', b"0" * 64, b'"\n}\n'


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


def encode_document(document: Mapping[str, object]) -> bytes:
    """JSON with its own hash as the last key. Raises ValueError for what JSON cannot hold."""
    text = json.dumps({**document, "sha256": _ZEROS.decode()}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    data = text.encode("utf-8")
    return data[: -len(_ZEROS + _TAIL)] + hashlib.sha256(data).hexdigest().encode("ascii") + _TAIL


def decode_document(path: Path, data: bytes) -> dict[str, object]:
    """The document in `data`, its own hash checked before it is parsed. Raises DamageError."""
    start = len(data) - len(_ZEROS + _TAIL)
    if start < len(_HEAD) or data[start - len(_HEAD) : start] != _HEAD or not data.endswith(_TAIL):
        raise DamageError(f'{path} does not end with its "sha256"; restore it from a copy of the export')
    stored = data[start : start + 64]
    found = hashlib.sha256(data[:start] + _ZEROS + _TAIL).hexdigest().encode("ascii")
    if found != stored:
        raise DamageError(
            f"{path}: expected SHA-256 {stored.decode('ascii', 'replace')} as the file says of itself, found "
            f"{found.decode()}; restore it from a copy of the export"
        )
    document: dict[str, object] = json.loads(data)
    return document


def plain_json(value: object) -> object:
    """What JSON can hold of a trainer's configuration: other objects as their text, NaN and infinities as strings."""
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain_json(item) for item in value), key=str)
    return str(value)


def _encode(info: RunInfo | AttemptInfo) -> bytes:
    return encode_document({"format": _format_of(type(info)), **dataclasses.asdict(info)})


def _format_of(kind: type) -> str:
    return FORMAT_NAME if kind is RunInfo else ATTEMPT_FORMAT


def info_sha256(info: RunInfo | AttemptInfo) -> str:
    """SHA-256 of the file that `info` is written to: what an attempt names of its run, and a seal of its attempt."""
    return hashlib.sha256(_encode(info)).hexdigest()


def _decode(kind: type[Info], path: Path, data: bytes) -> Info:
    document = decode_document(path, data)
    if document.get("format") != _format_of(kind):
        raise DamageError(
            f'{path}: expected "format": "{_format_of(kind)}", found {document.get("format")!r}; restore it'
        )
    names = {field.name for field in dataclasses.fields(kind)}
    missing = names - document.keys()
    if missing:
        raise DamageError(f"{path} lacks {', '.join(sorted(missing))}; restore it from a copy of the export")
    found: dict[str, object] = {name: document[name] for name in names}
    return kind(**found)  # type: ignore[arg-type]


def read_run_info(file_system: FileSystem, paths: ExportPaths) -> RunInfo:
    """`run.json`. Raises RunError where the directory is no run of a version that we read, DamageError."""
    if not file_system.exists(paths.run_json):
        raise RunError(
            f"{paths.run_dir} is not a run directory: expected {paths.run_json.relative_to(paths.run_dir)} in it, "
            "found none; give the directory that the training wrote its export to"
        )
    data = file_system.read(paths.run_json)
    if _is_foreign(data) and not file_system.exists(paths.attempts):
        raise RunError(f'{paths.run_json} is not of a kiseki export: expected "format": "{FORMAT_NAME}" in it')
    document = decode_document(paths.run_json, data)
    version = document.get("format_version")
    if document.get("format") == FORMAT_NAME and version not in FORMAT_VERSIONS:
        raise RunError(
            f"{paths.run_json}: expected export format version {' or '.join(map(str, FORMAT_VERSIONS))}, found {version}; "
            "use a kiseki of that version"
        )
    return _decode(RunInfo, paths.run_json, data)


def _is_foreign(data: bytes) -> bool:
    try:
        document = json.loads(data)
    except ValueError:
        return False
    return not isinstance(document, Mapping) or ("sha256" not in document and document.get("format") != FORMAT_NAME)


def write_run_info(file_system: FileSystem, path: Path, info: RunInfo) -> None:
    """`run.json`."""
    write_once(file_system, path, _encode(info))


def read_attempt_info(file_system: FileSystem, paths: ExportPaths, attempt: int) -> AttemptInfo | None:
    """`attempt.json`, or None where the attempt was claimed and died before it said anything."""
    path = paths.attempt_json(attempt)
    if not file_system.exists(path):
        return None
    return _decode(AttemptInfo, path, file_system.read(path))


def write_attempt_info(file_system: FileSystem, paths: ExportPaths, info: AttemptInfo) -> None:
    """`attempt.json` of a claimed attempt."""
    write_once(file_system, paths.attempt_json(info.attempt), _encode(info))
