"""Verification of an export: every byte that its writers vouched for, and whether what they vouched for is all there.

- *damaged*: bytes, files or records that differ from what was sealed or acknowledged. No crash leaves that behind.
- *incomplete*: rows that the writers say they did not export (gaps), writers that closed and differ.
- *note*: what a crash or a running training leaves behind: open files, torn tails, a last step that is not whole.

It can run while the export grows. What it cannot see: the loss of the newest records of an open file, of a last attempt
as a whole, or that the devices consumed what the export says.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from train_hooks.export_format.errors import DamageError, InputError, RunError
from train_hooks.export_format.filesystem import FileSystem, OsFileSystem
from train_hooks.export_format.json_files import expect_attempts_in_order, read_attempt_info, read_run_info
from train_hooks.export_format.lineage import lineage
from train_hooks.export_format.paths import IN_PROGRESS, ExportPaths
from train_hooks.export_format.reading.reader import AttemptReader, RunReader
from train_hooks.export_format.reading.summaries import EvidenceShares
from train_hooks.export_format.records import AttemptInfo
from train_hooks.export_format.verify.attempt import AttemptCheck
from train_hooks.export_format.verify.findings import Finding, Report, Severity

__all__ = ["Finding", "Report", "Severity", "verify"]

Progress = Callable[[int, int], None]


def verify(
    run: RunReader | Path | str, *, progress: Progress | None = None, file_system: FileSystem | None = None
) -> Report:
    """Check all of a run's export. A path is opened first, so that damage of `run.json` becomes a finding as well.

    progress: called with (bytes read, bytes in all). Raises RunError where there is no run, and OSError where the disk
    does not answer; nothing else.
    """
    if not isinstance(run, RunReader):
        file_system = file_system or OsFileSystem()
        paths = ExportPaths(Path(run))
        try:
            run = RunReader(paths.run_dir, file_system)
        except DamageError as error:
            name = str(paths.run_json.relative_to(paths.run_dir))
            return Report(findings=(Finding(severity=Severity.DAMAGED, path=name, message=str(error)),))
    return _Verification(run, progress).report()


class _Verification:
    def __init__(self, run: RunReader, progress: Progress | None) -> None:
        self._run, self._paths, self._fs = run, run.paths, run.file_system
        self._progress = progress
        self._findings: list[Finding] = []
        self._read_bytes = 0
        self._total_bytes = 0

    def report(self) -> Report:
        self._check_run_files()
        secret = self._secret()
        infos = self._attempt_infos()
        readers = [AttemptReader(self._run, info) for info in infos.values()]
        self._total_bytes = sum(self._size_of(reader) for reader in readers)
        checks = [self._check_attempt(reader, secret) for reader in readers]
        for info in infos.values():
            self._check_parent(info, infos, {check.attempt: check.committed for check in checks})
        if checks and not any(check.committed for check in checks) and not self._findings:
            self._add(
                Severity.INCOMPLETE, self._paths.attempts,
                "holds no step that every writer has committed: the training has not come so far, or it never calls "
                "hook.commit(step)",
            )  # fmt: skip
        shares = EvidenceShares()
        for check in checks:
            shares = shares.combined_with(check.shares)
        return Report(
            findings=tuple(self._findings),
            shares=shares,
            num_files=sum(check.num_files for check in checks),
            num_rows=sum(check.num_rows for check in checks),
            num_tokens=sum(check.num_tokens for check in checks),
            size_bytes=self._read_bytes,
        )

    def _add(self, severity: Severity, path: Path, message: str, step: int | None = None) -> None:
        name = str(path.relative_to(self._paths.run_dir)) if path.is_relative_to(self._paths.run_dir) else str(path)
        self._findings.append(Finding(severity=severity, path=name, message=message, step=step))

    def _advance(self, num_bytes: int) -> None:
        self._read_bytes += num_bytes
        if self._progress is not None:
            self._progress(self._read_bytes, max(self._total_bytes, self._read_bytes))

    def _check_run_files(self) -> None:
        try:
            read_run_info(self._fs, self._paths)
        except (DamageError, RunError) as error:
            self._add(Severity.DAMAGED, self._paths.run_json, str(error))
        tokenizer = self._run.info.tokenizer_file
        if tokenizer is not None:
            try:
                self._run.tokenizer_path()
            except DamageError as error:
                self._add(Severity.DAMAGED, self._paths.tokenizer_dir / tokenizer, str(error))
        known = {self._paths.run_json.name, self._paths.secret.name, self._paths.attempts.name}
        if tokenizer is not None:
            known.add(self._paths.tokenizer_dir.name)
            self._check_names(self._paths.tokenizer_dir, {tokenizer})
        self._check_names(self._paths.export, known)

    def _check_names(self, directory: Path, known: set[str]) -> None:
        if not self._fs.exists(directory):
            return
        for name in self._fs.names(directory):
            if name in known:
                continue
            doubled = name.removesuffix(IN_PROGRESS) in known
            severity = Severity.DAMAGED if doubled else Severity.NOTE
            self._add(severity, directory / name, "is none of the export's files; remove it if nobody needs it")

    def _secret(self) -> bytes | None:
        try:
            return self._run.secret()
        except DamageError as error:
            self._add(Severity.DAMAGED, self._paths.secret, str(error))
            return None

    def _attempt_infos(self) -> dict[int, AttemptInfo]:
        if not self._fs.exists(self._paths.attempts):
            self._add(Severity.DAMAGED, self._paths.attempts, "is missing; restore it from a copy of the export")
            return {}
        numbers = self._run.attempt_numbers()
        known = {self._paths.attempt_dir(number).name for number in numbers}
        self._check_names(self._paths.attempts, known)
        for number in sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers)):
            self._add(
                Severity.DAMAGED, self._paths.attempt_dir(number), "is missing; restore it from a copy of the export"
            )
        infos = {number: self._attempt_info(number) for number in numbers}
        found = {number: info for number, info in infos.items() if info is not None}
        try:
            expect_attempts_in_order(self._run.info, found.values())
        except RunError as error:
            self._add(Severity.DAMAGED, self._paths.attempts, str(error))
        return found

    def _attempt_info(self, number: int) -> AttemptInfo | None:
        path = self._paths.attempt_json(number)
        try:
            info = read_attempt_info(self._fs, self._paths, number, self._run.info)
        except (DamageError, RunError) as error:
            self._add(Severity.DAMAGED, path, str(error))
            return None
        if info is None:
            others = [name for name in self._fs.names(path.parent) if name != path.name + IN_PROGRESS]
            if others:
                self._add(Severity.DAMAGED, path, "is missing; restore it from a copy of the export")
            else:
                self._add(Severity.NOTE, path.parent, "was claimed by a process that died at once")
            return None
        if info.attempt != number or info.run_id != self._run.info.run_id:
            self._add(
                Severity.DAMAGED, path, f"is of attempt {info.attempt} of run {info.run_id}; restore the right one"
            )
            return None
        if info.run_sha256 is not None and info.run_sha256 != self._sha256(self._paths.run_json):
            self._add(Severity.DAMAGED, self._paths.run_json, f"is not the one that attempt {number} began with")
        return info

    def _sha256(self, path: Path) -> str | None:
        return hashlib.sha256(self._fs.read(path)).hexdigest() if self._fs.exists(path) else None

    def _size_of(self, reader: AttemptReader) -> int:
        total = 0
        for name in self._fs.names(reader.directory):
            try:
                total += self._fs.size(reader.directory / name)
            except FileNotFoundError:
                continue
        return total

    def _check_attempt(self, reader: AttemptReader, secret: bytes | None) -> AttemptCheck:
        sha256 = self._sha256(self._paths.attempt_json(reader.info.attempt))
        check = AttemptCheck(reader, sha256, secret, self._add, self._advance)
        check.run()
        return check

    def _check_parent(self, info: AttemptInfo, infos: dict[int, AttemptInfo], committed: dict[int, set[int]]) -> None:
        path = self._paths.attempt_json(info.attempt)
        if info.parent_attempt is None:
            if info.resume_step:
                self._add(Severity.DAMAGED, path, f"resumes from step {info.resume_step} of no attempt")
            return
        parent = self._paths.attempt_json(info.parent_attempt)
        if info.parent_sha256 is not None and info.parent_sha256 != self._sha256(parent):
            self._add(Severity.DAMAGED, parent, f"is not the one that attempt {info.attempt} resumed from")
        try:
            intervals = lineage(infos.values(), info.parent_attempt, info.resume_step)
        except (DamageError, InputError) as error:
            self._add(Severity.DAMAGED, path, f"its lineage is broken: {error}; restore what is missing from a copy")
            return
        for interval in intervals:
            steps = range(interval.first_step, (interval.last_step or 0) + 1)
            missing = [step for step in steps if step not in committed.get(interval.attempt, set())]
            if missing:
                self._add(
                    Severity.DAMAGED,
                    self._paths.attempt_dir(interval.attempt),
                    f"lacks {len(missing)} steps before step {info.resume_step}, from which attempt {info.attempt} "
                    f"resumed ({_some(missing)}); restore it from a copy of the export",
                    missing[0],
                )


def _some(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:5])) + (" …" if len(steps) > 5 else "")
