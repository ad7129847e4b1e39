"""Tombstones: rows, documents and spans that no answer shows or counts, from the moment they are written.

RUN/tombstones.json holds all that ever were, with reason and time, and the hash of itself; a lifted one stays in it. It
lies beside the index, which may be thrown away. A file that does not match its hash stops every answer: what was taken
down must not come back by an accident. Tokens stay in export and index until `indexer.takedown` removes them.
"""

import dataclasses
import fcntl
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from indexer.durable import replace_file
from indexer.selection.visibility import EVERYTHING, Visibility
from indexer.storage.paths import IndexPaths
from train_hooks.export_format.errors import DamageError, InputError
from train_hooks.export_format.json_files import decode_document, encode_document
from train_hooks.export_format.records import SequenceAddress

__all__ = ["Tombstone", "TombstoneFile", "visibility_of"]

FORMAT = "kiseki-tombstones-v1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tombstone:
    """One removal. It names a document by source and id, or a row by address, or tokens [start, end) of a row."""

    number: int
    created_unix_s: float
    reason: str
    address: str | None = None
    start: int | None = None
    end: int | None = None
    source: str | None = None
    document_id: str | None = None
    lifted_unix_s: float | None = None
    lift_reason: str | None = None
    removed_unix_s: float | None = None
    """Since when its tokens are in neither export nor index; such a one cannot be lifted."""

    def __post_init__(self) -> None:
        is_document = self.source is not None and self.document_id is not None
        is_row = self.address is not None and self.source is None and self.document_id is None
        is_span = self.start is not None and self.end is not None
        if is_document == is_row or (is_document and is_span) or (self.start is None) != (self.end is None):
            raise InputError("expected a document (source and id), a row (address), or tokens start:end of a row")
        if self.start is not None and self.end is not None and not 0 <= self.start < self.end:
            raise InputError(f"tokens: expected 0 ≤ start < end, found {self.start}:{self.end}")
        if not self.reason.strip():
            raise InputError("expected a reason, found none")
        if self.address is not None:
            SequenceAddress.parse(self.address)

    @property
    def what(self) -> str:
        """What it hides, for people."""
        if self.address is None:
            return f"document {self.source} / {self.document_id}"
        return self.address if self.start is None else f"{self.address} tokens {self.start}:{self.end}"


class TombstoneFile:
    """The tombstones of a run. Readers look at the file's status each time, and read it again when it changed."""

    def __init__(self, paths: IndexPaths) -> None:
        self._path = paths.tombstones
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._visibility = EVERYTHING

    def visibility(self) -> Visibility:
        """What the tombstones in force hide. Raises DamageError where the file is not whole."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._seen = None
            return EVERYTHING
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        with self._lock:
            if seen != self._seen:
                self._visibility, self._seen = visibility_of(self.read()), seen
            return self._visibility

    def read(self) -> list[Tombstone]:
        """All, lifted ones too, by number. Raises DamageError."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        document = decode_document(self._path, data)
        if document.get("format") != FORMAT:
            raise DamageError(f"{self._path}: expected format {FORMAT}; a newer kiseki may have written it")
        return [Tombstone(**item) for item in document["tombstones"]]  # type: ignore[attr-defined]

    def add(self, *, reason: str, **what: str | int | None) -> Tombstone:
        """Write one more; `what` are fields of Tombstone. Raises InputError."""
        with self._locked():
            before = self.read()
            added = Tombstone(number=len(before) + 1, created_unix_s=time.time(), reason=reason, **what)  # type: ignore[arg-type]
            self._write([*before, added])
        return added

    def lift(self, number: int, *, reason: str) -> Tombstone:
        """End one. Raises InputError where there is none of this number in force, or no reason."""
        if not reason.strip():
            raise InputError("expected a reason, found none")
        with self._locked():
            before = self.read()
            if not 1 <= number <= len(before) or before[number - 1].lifted_unix_s is not None:
                raise InputError(
                    f"expected the number of a tombstone in force, found {number}; see `kiseki tombstone list`"
                )
            if before[number - 1].removed_unix_s is not None:
                raise InputError(f"tombstone {number}: its tokens were removed for good, so it cannot be lifted")
            lifted = dataclasses.replace(before[number - 1], lifted_unix_s=time.time(), lift_reason=reason)
            self._write([*before[: number - 1], lifted, *before[number:]])
        return lifted

    def in_force(self) -> list[Tombstone]:
        """Those that are not lifted, by number. Raises DamageError."""
        return [item for item in self.read() if item.lifted_unix_s is None]

    def mark_removed(self, numbers: Collection[int]) -> None:
        """Write down that the tokens of these are in neither export nor index any more."""
        now = time.time()
        with self._locked():
            self._write(
                [
                    dataclasses.replace(item, removed_unix_s=now)
                    if item.number in numbers and item.removed_unix_s is None
                    else item
                    for item in self.read()
                ]
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._path.with_name(self._path.name + ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _write(self, tombstones: Sequence[Tombstone]) -> None:
        document = {"format": FORMAT, "tombstones": [dataclasses.asdict(item) for item in tombstones]}
        replace_file(self._path, encode_document(document))


def visibility_of(tombstones: Sequence[Tombstone]) -> Visibility:
    """What the tombstones hide, lifted ones left out."""
    rows, documents, spans = set(), set(), set()
    for item in tombstones:
        if item.lifted_unix_s is not None:
            continue
        if item.address is None:
            documents.add((item.source or "", item.document_id or ""))
        elif item.start is None or item.end is None:
            rows.add(SequenceAddress.parse(item.address))
        else:
            spans.add((SequenceAddress.parse(item.address), item.start, item.end))
    return Visibility(hidden_rows=frozenset(rows), hidden_documents=frozenset(documents), hidden_spans=frozenset(spans))
