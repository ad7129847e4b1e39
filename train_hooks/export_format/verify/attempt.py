"""Verification of one attempt: its files against their seals, its writers against one another."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from train_hooks.export_format.acknowledgement import ack_size, well_formed
from train_hooks.export_format.barriers import read_barrier
from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.paths import IN_PROGRESS, REPAIRED, CompactionName, ExportPaths, SegmentFileName
from train_hooks.export_format.reading.chain import SegmentFile, WriterLog
from train_hooks.export_format.reading.compacted import is_superfluous
from train_hooks.export_format.reading.reader import AttemptReader
from train_hooks.export_format.reading.summaries import EvidenceShares
from train_hooks.export_format.records import RowLoss
from train_hooks.export_format.seals import FileSummary, Seal, read_seal, summary_of
from train_hooks.export_format.verify.file import FileContent, StepContent, check_content, late_loss_faults
from train_hooks.export_format.verify.findings import Severity

__all__ = ["AttemptCheck"]

Add = Callable[[Severity, Path, str, int | None], None]
_RESTORE = "restore it from a copy of the export"


class AttemptCheck:
    """The check of one attempt. `committed`, `num_…` are filled by `run`."""

    def __init__(
        self,
        attempt: AttemptReader,
        attempt_sha256: str | None,
        secret: bytes | None,
        add: Add,
        progress: Callable[[int], None],
    ) -> None:
        self.attempt = attempt.info.attempt
        self.committed: set[int] = set()
        self.num_files = self.num_rows = self.num_tokens = 0
        self.shares = EvidenceShares()
        self._reader, self._sha256, self._secret = attempt, attempt_sha256, secret
        self._fs, self._directory = attempt.run.file_system, attempt.directory
        self._add, self._progress = add, progress

    def run(self) -> None:
        """Check everything in the attempt's directory."""
        names = self._fs.names(self._directory)
        self._check_names(names)
        try:
            logs = self._reader.writer_logs(thorough=True)
        except DamageError as error:
            self._damaged(self._directory, str(error))
            return
        self._check_compactions(logs)
        steps = {dp_rank: self._check_writer(log) for dp_rank, log in sorted(logs.items())}
        self._check_steps(logs, steps)
        self._check_barriers(names)

    def _damaged(self, path: Path, message: str, step: int | None = None) -> None:
        self._add(Severity.DAMAGED, path, message, step)

    def _note(self, path: Path, message: str, step: int | None = None) -> None:
        self._add(Severity.NOTE, path, message, step)

    def _check_names(self, names: Sequence[str]) -> None:
        known = set(names)
        own = self._reader.run.paths.attempt_json(self.attempt).name
        for name in names:
            path = self._directory / name
            if name.endswith(IN_PROGRESS) and name.removesuffix(IN_PROGRESS) in known:
                if self._fs.exists(path):  # otherwise it was renamed while we looked
                    self._damaged(path, "stands beside the file of its final name; one of them is a copy: remove it")
            elif name.endswith(REPAIRED + IN_PROGRESS):
                self._note(path, "is what a repair began; another `kiseki export repair` goes on")
            elif name != own and not _is_ours(name):
                self._note(path, "is none of the export's files; remove it if nobody needs it")
            self._check_manifest_of(path, known)

    def _check_manifest_of(self, path: Path, known: set[str]) -> None:
        """Parquet without its manifest: a compaction that died, while the data that it copied is still there."""
        parsed = CompactionName.parse(path.name)
        if parsed is None or parsed[1] == "compacted.json" or parsed[0].manifest in known:
            return
        if is_superfluous(parsed[0], known):
            self._note(path, "is what a compaction or a takedown began; another one goes on")
        elif not self._fs.exists(self._directory / parsed[0].manifest):
            self._damaged(self._directory / parsed[0].manifest, f"is missing; {_RESTORE}")

    def _check_writer(self, log: WriterLog) -> dict[int, StepContent]:
        if log.dp_rank >= self._reader.info.num_writers:
            self._damaged(
                self._directory / log.files[0].name.data,
                f"is of dp_rank {log.dp_rank}; the attempt has {self._reader.info.num_writers} writers",
            )
        steps: dict[int, StepContent] = {}
        previous: list[Seal | None] = []
        late: list[tuple[int, RowLoss]] = []
        expected = 0
        for file in log.files:
            for number in range(expected, file.name.number):
                missing = SegmentFileName(dp_rank=log.dp_rank, number=number)
                self._damaged(self._directory / missing.data, f"is missing, and a later one is there; {_RESTORE}")
            expected = file.name.number + 1
            late += self._check_file(log, file, previous, steps)
        self._check_late_losses(log, late)
        return steps

    def _check_late_losses(self, log: WriterLog, late: Sequence[tuple[int, RowLoss]]) -> None:
        """Each is of a row that is there, and that has no other loss. Reads the steps that they are of once more."""
        by_step: dict[int, list[RowLoss]] = {}
        for step, loss in late:
            by_step.setdefault(step, []).append(loss)
        for step, losses in sorted(by_step.items()):
            try:
                frames = [
                    frame
                    for file, acks in log.steps_between(step, step)
                    for frame in self._reader.frames_of(file, acks)
                ]
                rows = [row for frame in frames for row in self._reader.rows(frame)]
            except DamageError:  # named where it is
                continue
            for fault in late_loss_faults(rows, losses):
                self._damaged(self._directory, f"a loss that came late {fault}; the writer was at fault", step)

    def _check_file(
        self, log: WriterLog, file: SegmentFile, previous: list[Seal | None], steps: dict[int, StepContent]
    ) -> list[tuple[int, RowLoss]]:
        """What is wrong is named; gives back the losses that came late."""
        self.num_files += 1
        if file.damage is not None:
            self._damaged(file.acks_path, f"{file.damage}; {_RESTORE}")
        content = check_content(self._reader, file, self._secret, self._damaged, self._progress)
        self.num_rows += content.num_rows
        self.num_tokens += content.num_tokens
        self.shares = self.shares.combined_with(content.shares)
        if content.num_removed:
            self._note(file.data_path, f"{content.num_removed} of its rows have lost tokens to a takedown")
        for global_step, step in content.steps:
            if global_step in steps:
                self._damaged(file.data_path, "holds the step twice, or another file holds it as well", global_step)
            steps[global_step] = step
        if file.sealed:
            self._check_seal(log, file, content, previous)
        else:
            self._check_open(log, file)
            if file.ended is not None:
                previous.append(None)
        return content.late_losses

    def _check_seal(self, log: WriterLog, file: SegmentFile, content: FileContent, previous: list[Seal | None]) -> None:
        path = self._directory / file.name.seal
        try:
            seal = read_seal(path, self._fs.read(path))
        except (DamageError, FileNotFoundError) as error:
            self._damaged(path, str(error))
            return
        for message in self._seal_faults(log, file, seal, content):
            self._damaged(path, f"{message}; {_RESTORE}")
        if not _follows(seal, previous):
            self._damaged(path, f"does not name the seal of the writer's file before; {_RESTORE}")
        previous.append(seal)

    def _seal_faults(self, log: WriterLog, file: SegmentFile, seal: Seal, content: FileContent) -> list[str]:
        info = self._reader.info
        faults = []
        if (seal.run_id, seal.attempt, seal.dp_rank, seal.file_number) != (
            info.run_id, info.attempt, file.name.dp_rank, file.name.number,
        ) or (seal.data.name, seal.acks.name) != (file.name.data, file.name.acks):  # fmt: skip
            faults.append("is another file's seal")
        if seal.attempt_sha256 != self._sha256:
            faults.append("belongs to another attempt.json than the one here")
        faults += [text for text in (self._part_fault(file, seal, content), self._acks_fault(seal)) if text]
        found = summary_of(file.acks, self._reader.run.info)
        if _counts(found) != _counts(seal):
            faults.append(f"counts otherwise than the acknowledgement records do: {_counts(found)}")
        if self._reader.info.format_version >= 3:
            faults += self._summary_faults(log, file, seal)
        elif seal.summary is not None:
            faults.append("is of a later format than its attempt")
        is_last = file.name.number == log.files[-1].name.number
        if is_last and not seal.last:
            faults.append("says that another file follows, and none does")
        if seal.last and not is_last:
            faults.append("says that it is the writer's last, and others follow")
        return faults

    def _summary_faults(self, log: WriterLog, file: SegmentFile, seal: Seal) -> list[str]:
        earlier = [other for other in log.files if other.name.number <= file.name.number]
        last_step = WriterLog(dp_rank=log.dp_rank, files=tuple(earlier)).last_step
        last = file.acks[-1] if len(file.acks) else None
        expected = (
            summary_of(file.acks, self._reader.run.info), last_step, None if last is None else last.sha256.hex(),
            None if last is None else last.unix_time_us,
        )  # fmt: skip
        found = (seal.summary, seal.last_committed_step, seal.last_record_sha256, seal.last_unix_time_us)
        return [] if found == expected else ["its summary contradicts the acknowledgement records"]

    def _part_fault(self, file: SegmentFile, seal: Seal, content: FileContent) -> str | None:
        path = self._directory / seal.data.name
        if content.data_sha256 is None:
            return None if file.compacted is not None else f"covers {seal.data.name}, which is missing"
        size = self._fs.size(path) if self._fs.exists(path) else None
        if size != seal.data.size_bytes or content.data_sha256 != seal.data.sha256:
            return f"does not match {seal.data.name}: {size} bytes, SHA-256 {content.data_sha256}"
        return None

    def _acks_fault(self, seal: Seal) -> str | None:
        path = self._directory / seal.acks.name
        data = self._fs.read(path) if self._fs.exists(path) else b""
        found = hashlib.sha256(data).hexdigest()
        if len(data) != seal.acks.size_bytes or found != seal.acks.sha256:
            return f"does not match {seal.acks.name}: {len(data)} bytes, SHA-256 {found}"
        return None

    def _check_open(self, log: WriterLog, file: SegmentFile) -> None:
        final = [self._directory / name for name in (file.name.data, file.name.acks)]
        if any(map(self._fs.exists, final)) and not any(
            self._fs.exists(self._directory / name) for name in (file.name.seal + IN_PROGRESS, file.name.seal)
        ):
            self._damaged(self._directory / file.name.seal, f"is missing; {_RESTORE}")
            return
        path = next((path for path in (file.data_path, final[0]) if self._fs.exists(path)), None)
        try:
            size = 0 if path is None else self._fs.size(path)
        except FileNotFoundError:  # it was sealed since it was looked for
            path = final[0]
            size = self._fs.size(path)
        if path is not None and size and not any(map(self._fs.exists, (file.acks_path, final[1]))):
            self._damaged(file.acks_path, f"is missing, and its data is there; {_RESTORE}")
            return
        if path is not None and size < file.believed_size_bytes:
            self._damaged(path, f"has {size} bytes, {file.believed_size_bytes} were acknowledged; {_RESTORE}")
        elif size > file.believed_size_bytes:
            self._note(file.data_path, f"{size - file.believed_size_bytes} bytes at its end are not acknowledged")
        self._check_tail(file)
        if file.name.number != log.files[-1].name.number or log.closed:
            self._note(file.data_path, "is not sealed; `kiseki export repair` can seal it")

    def _check_tail(self, file: SegmentFile) -> None:
        size, version = ack_size(self._reader.info.format_version), self._reader.info.format_version
        if file.torn is None or not self._fs.exists(file.acks_path):
            return
        tail = self._fs.read(file.acks_path, file.believed_acks_bytes, file.acks_size_bytes)
        whole = [well_formed(tail[at : at + size], version) for at in range(0, len(tail), size)]
        if any(whole[1:]):
            self._add(
                Severity.INCOMPLETE, file.acks_path,
                f"{file.torn}, and whole records stand behind it: a crash in the midst of a write, or damage; compare "
                "it with a copy of the export", None,
            )  # fmt: skip
        else:
            self._note(file.acks_path, f"{file.torn}: a crash leaves that behind; `kiseki export repair` cuts it off")

    def _check_compactions(self, logs: dict[int, WriterLog]) -> None:
        files = {file.name: file for log in logs.values() for file in log.files}
        for compacted in {id(file.compacted): file.compacted for file in files.values() if file.compacted}.values():
            manifest = compacted.manifest
            if (manifest.run_id, manifest.attempt, manifest.attempt_sha256) != (
                self._reader.info.run_id, self.attempt, self._sha256,
            ):  # fmt: skip
                self._damaged(compacted.path, f"belongs to another attempt.json than the one here; {_RESTORE}")
            for part in (manifest.rows, manifest.frames):
                for message in compacted.faults(part):
                    self._damaged(self._directory / part.name, f"{message}; {_RESTORE}")
            for item, name in zip(manifest.replaced, compacted.names(), strict=True):
                if not self._names_seal(name, item.seal_sha256, item.data_sha256):
                    self._damaged(self._directory / name.seal, f"is not the seal that {compacted.path.name} names")
                if self._fs.exists(self._directory / name.data):
                    self._note(self._directory / name.data, "was compacted; compaction, run again, removes it")

    def _names_seal(self, name: SegmentFileName, seal_sha256: str, data_sha256: str) -> bool:
        path = self._directory / name.seal
        if not self._fs.exists(path):
            return False
        data = self._fs.read(path)
        try:
            return hashlib.sha256(data).hexdigest() == seal_sha256 and read_seal(path, data).data.sha256 == data_sha256
        except DamageError:
            return False

    def _check_steps(self, logs: dict[int, WriterLog], steps: dict[int, dict[int, StepContent]]) -> None:
        info = self._reader.info
        for dp_rank, log in logs.items():
            found = log.step_numbers.tolist()
            expected = list(range(info.resume_step + 1, info.resume_step + 1 + len(found)))
            if found != expected:
                step = next((b for a, b in zip(found, expected, strict=True) if a != b), None)
                self._damaged(
                    self._directory, f"dp_rank {dp_rank} does not hold every step once, in order; {_RESTORE}", step
                )
        absent = sorted(set(range(info.num_writers)) - logs.keys())
        if absent and any(steps.values()):  # training begins when every writer has made its first file
            missing = SegmentFileName(dp_rank=absent[0], number=0)
            self._damaged(
                self._directory / missing.data,
                f"{len(absent)} of {info.num_writers} writers are missing, from dp_rank {absent[0]} on; {_RESTORE}",
            )
        if not absent and steps:
            self.committed = set.intersection(*(set(found) for found in steps.values()))
        self._compare_writers(logs, steps)

    def _compare_writers(self, logs: dict[int, WriterLog], steps: dict[int, dict[int, StepContent]]) -> None:
        everywhere = sorted(set().union(*steps.values())) if steps else []
        for step in everywhere:
            found = [content[step] for content in steps.values() if step in content]
            for gap in [content.gap for content in found if content.gap is not None]:
                self._add(Severity.INCOMPLETE, self._directory, f"rows are missing, as recorded: {gap}", step)
            if step not in self.committed:
                closed = all(log.closed for log in logs.values())
                severity = Severity.INCOMPLETE if closed else Severity.NOTE
                self._add(
                    severity, self._directory, "not every writer has acknowledged the step; it does not count", step
                )
            elif len({content.status for content in found}) > 1:
                self._damaged(self._directory, "its writers disagree on the step's status", step)
            elif len({(content.num_rows, content.num_microbatches) for content in found if content.gap is None}) > 1:
                self._add(Severity.INCOMPLETE, self._directory, "its writers hold different numbers of rows", step)

    def _check_barriers(self, names: Sequence[str]) -> None:
        info, paths = self._reader.info, self._reader.run.paths
        newest = max(self.committed, default=info.resume_step)
        for name in names:
            step = ExportPaths.barrier_step(name)
            if step is None or name.endswith(IN_PROGRESS):
                continue
            try:
                read_barrier(self._fs, paths, info, step)
            except DamageError as error:
                self._damaged(self._directory / name, str(error))
                continue
            if info.resume_step < step and step not in self.committed:
                self._damaged(
                    self._directory / name,
                    f"says that step {step} was durable on every writer, and the newest that all have is {newest}; "
                    f"{_RESTORE}",
                    step,
                )


def _is_ours(name: str) -> bool:
    return (
        SegmentFileName.parse(name) is not None
        or CompactionName.parse(name) is not None
        or ExportPaths.barrier_step(name) is not None
    )


def _counts(of: Seal | FileSummary) -> tuple[int | None, ...]:
    return of.num_rows, of.num_tokens, of.num_steps, of.first_step, of.last_step


def _follows(seal: Seal, previous: Sequence[Seal | None]) -> bool:
    """Whether the seal names the newest one before it that is not of a repaired file; None: that one is not made yet."""
    for earlier in reversed(previous):
        if earlier is None:
            return True
        if earlier.reason != "repaired":
            return seal.previous_seal_sha256 == earlier.sha256
    return seal.previous_seal_sha256 is None
