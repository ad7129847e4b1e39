"""The small JSON files of a run: written once, read whole, each with a hash of itself.

The last key of every such file is "sha256": the SHA-256, in lower-case hex, of the file's own bytes with these 64
digits replaced by 64 zeros. So a change of any byte is seen before anything is parsed, without a canonical form of
JSON.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from train_hooks.export_format.errors import DamageError, RunError
from train_hooks.export_format.filesystem import FileSystem
from train_hooks.export_format.paths import IN_PROGRESS, ExportPaths
from train_hooks.export_format.records import AttemptInfo, Evidence, Matched, RunInfo, TensorScope

__all__ = [
    "FORMAT_NAME",
    "FORMAT_VERSIONS",
    "decode_document",
    "encode_document",
    "expect_attempts_in_order",
    "info_sha256",
    "plain_json",
    "read_attempt_info",
    "read_run_info",
    "write_attempt_info",
    "write_once",
    "write_run_info",
]

FORMAT_NAME, FORMAT_VERSIONS = "kiseki-export", (1, 2, 3)
OLD_ATTEMPT_FORMAT = "kiseki-attempt-v1"
ATTEMPT_FORMAT = "kiseki-attempt-v3; needs kiseki 0.2.0 or newer"
"""kiseki 0.1.0 refuses an attempt of another format than its own and prints it, so it says what is needed."""
_SINCE_3 = {
    RunInfo: ("shorter_rows",),
    AttemptInfo: ("default_evidence", "default_tensor_evidence", "default_matched", "tensor_scopes"),
}
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


def encode_document(document: Mapping[str, object], *, flat: bool = False) -> bytes:
    """JSON with its own hash as the last key. Raises ValueError for what JSON cannot hold. flat: a line a key."""
    whole = {**document, "sha256": _ZEROS.decode()}
    if flat:
        lines = (f"{json.dumps(key)}: {_dumps(value)}" for key, value in whole.items())
        text = "{\n" + ",\n".join(lines) + "\n}\n"
    else:
        text = _dumps(whole, indent=1) + "\n"
    data = text.encode("utf-8")
    return data[: -len(_ZEROS + _TAIL)] + hashlib.sha256(data).hexdigest().encode("ascii") + _TAIL


def _dumps(value: object, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


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
    """The file of `info`, in its own version: that of an older one comes out as it was written."""
    document = {"format": _format_of(info), **dataclasses.asdict(info)}
    if isinstance(info, AttemptInfo):
        del document["format_version"], document["file_sha256"]  # `format` says the one, the file's bytes the other
    if info.format_version < 3:
        for name in _SINCE_3[type(info)]:
            del document[name]
    return encode_document(document)


def _format_of(info: RunInfo | AttemptInfo) -> str:
    if isinstance(info, RunInfo):
        return FORMAT_NAME
    return OLD_ATTEMPT_FORMAT if info.format_version < 3 else ATTEMPT_FORMAT


def info_sha256(info: RunInfo | AttemptInfo) -> str:
    """SHA-256 of the file of `info`: what an attempt names of its run, and a seal of its attempt."""
    if isinstance(info, AttemptInfo) and info.file_sha256 is not None:  # it may have keys that we do not know
        return info.file_sha256
    return hashlib.sha256(_encode(info)).hexdigest()


def _fields(kind: type[Info], path: Path, document: Mapping[str, object], version: int) -> dict[str, object]:
    names = {field.name for field in dataclasses.fields(kind)} - {"format_version", "file_sha256"}
    if version < 3:
        names -= set(_SINCE_3[kind])
    missing = names - document.keys()
    if missing:
        raise DamageError(f"{path} lacks {', '.join(sorted(missing))}; restore it from a copy of the export")
    return {name: document[name] for name in names} | {"format_version": version}


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
    if document.get("format") != FORMAT_NAME:
        raise DamageError(
            f'{paths.run_json}: expected "format": "{FORMAT_NAME}", found {document.get("format")!r}; '
            "restore it from a copy"
        )
    if not isinstance(version, int) or version not in FORMAT_VERSIONS:
        raise RunError(
            f"{paths.run_json}: expected export format version {', '.join(map(str, FORMAT_VERSIONS[:-1]))} or "
            f"{FORMAT_VERSIONS[-1]}, found {version}; read it with a newer kiseki"
        )
    found = _fields(RunInfo, paths.run_json, document, version)
    return RunInfo(**{"shorter_rows": version == 2, **found})  # type: ignore[arg-type]


def _is_foreign(data: bytes) -> bool:
    try:
        document = json.loads(data)
    except ValueError:
        return False
    return not isinstance(document, Mapping) or ("sha256" not in document and document.get("format") != FORMAT_NAME)


def write_run_info(file_system: FileSystem, path: Path, info: RunInfo) -> None:
    """`run.json`."""
    write_once(file_system, path, _encode(info))


def read_attempt_info(file_system: FileSystem, paths: ExportPaths, attempt: int, run: RunInfo) -> AttemptInfo | None:
    """`attempt.json`, or None where the attempt was claimed and died before it said anything.

    Raises RunError for a format that we do not know, DamageError where it is damaged, or missing beside rows.
    """
    path = paths.attempt_json(attempt)
    if not file_system.exists(path):
        if any(name.startswith(("rows-", "barrier-")) for name in file_system.names(path.parent)):
            raise DamageError(
                f"{path} is missing, and rows of the attempt are there; restore it from a copy of the export"
            )
        return None
    data = file_system.read(path)
    document = decode_document(path, data)
    version = _attempt_version(path, document.get("format"), run)
    found = _fields(AttemptInfo, path, document, version)
    if version >= 3:
        found.update(_evidence_of(path, found))
    return AttemptInfo(**found, file_sha256=hashlib.sha256(data).hexdigest())  # type: ignore[arg-type]


def _attempt_version(path: Path, found: object, run: RunInfo) -> int:
    if found == ATTEMPT_FORMAT:
        return 3
    if found == OLD_ATTEMPT_FORMAT:
        return min(run.format_version, 2)
    if isinstance(found, str) and found.startswith("kiseki-attempt-v"):
        raise RunError(
            f'{path}: expected the attempt of format 1, 2 or 3, found "{found}"; read it with a newer kiseki'
        )
    raise DamageError(f'{path}: expected "format": "{ATTEMPT_FORMAT}", found {found!r}; restore it from a copy')


def _evidence_of(path: Path, found: Mapping[str, object]) -> dict[str, object]:
    try:
        words: dict[str, object] = {
            name: None if found[name] is None else kind(str(found[name]))
            for name, kind in (
                ("default_evidence", Evidence), ("default_tensor_evidence", Evidence), ("default_matched", Matched),
            )
        }  # fmt: skip
        scopes = found["tensor_scopes"]
        if not isinstance(scopes, Mapping):
            raise ValueError(f"tensor_scopes is {scopes!r}")
        words["tensor_scopes"] = {str(name): TensorScope(str(scope)) for name, scope in scopes.items()}
    except ValueError as error:
        raise DamageError(f"{path}: {error}; restore it from a copy of the export") from error
    return words


def expect_attempts_in_order(run: RunInfo, attempts: Iterable[AttemptInfo]) -> None:
    """Raises RunError where an attempt is of an older format than one before it, or than its run."""
    version, before = (run.format_version if run.format_version >= 3 else 0), "the run"
    for info in attempts:
        if info.format_version < version:
            raise RunError(
                f"attempt {info.attempt} of run {info.run_id} is of an older format than {before} before it, which is of "
                f"format {version}: an older kiseki began it; move its directory out of export/attempts to read the run "
                "without it"
            )
        version, before = info.format_version, f"attempt {info.attempt}"


def write_attempt_info(file_system: FileSystem, paths: ExportPaths, info: AttemptInfo) -> None:
    """`attempt.json` of a claimed attempt."""
    write_once(file_system, paths.attempt_json(info.attempt), _encode(info))
