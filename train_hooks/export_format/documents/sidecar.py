"""The names of the documents in a tokenized file, kept beside it: ordinal → source, id, file, line, hash of the text.

Tokenized files number their documents and forget where they came from. `PREFIX.documents.arrow` has a row for each, in
their order, in batches of `BATCH_ROWS`, to be looked at in place (memory-mapped). An empty batch at the end has
the SHA-256 of the index that it belongs to: beside another one it is refused.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from train_hooks.export_format.errors import InputError

__all__ = ["BATCH_ROWS", "DocumentName", "Sidecar", "SidecarWriter", "sidecar_path"]

BATCH_ROWS = 65_536
_SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("source", pa.utf8()), ("document_id", pa.utf8()), ("file", pa.utf8()), ("line", pa.int64()),
            ("text_sha256", pa.binary(32)),
        )
    ]
)  # fmt: skip
_INDEX_KEY = "kiseki.index_sha256"


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentName:
    """Where a document came from. file: path below the corpus; line: from 1; text_sha256: 32 bytes, of the UTF-8 text."""

    source: str
    document_id: str
    file: str
    line: int
    text_sha256: bytes


def sidecar_path(prefix: Path | str) -> Path:
    """Where the names of the documents of PREFIX.bin stand."""
    return Path(f"{prefix}.documents.arrow")


class SidecarWriter:
    """Writes the names of the documents of PREFIX, as they come. Memory holds `BATCH_ROWS` of them."""

    def __init__(self, prefix: Path | str) -> None:
        self._path = sidecar_path(prefix)
        self._half = self._path.with_name(self._path.name + ".inprogress")
        self._file = pa.OSFile(str(self._half), "wb")
        self._writer = pa.ipc.new_file(self._file, _SCHEMA)
        self._rows: list[DocumentName] = []
        self._num_names = 0

    def add(self, name: DocumentName) -> None:
        """The next document's."""
        self._rows.append(name)
        self._num_names += 1
        if len(self._rows) == BATCH_ROWS:
            self._write(self._rows, {})
            self._rows = []

    def abandon(self) -> None:
        """Leave no sidecar, or the one that was there."""
        if not self._file.closed:
            self._writer.close()
            self._file.close()
        self._half.unlink(missing_ok=True)

    def __enter__(self) -> "SidecarWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abandon()

    def finish(self, index: Path, num_documents: int) -> None:
        """All names are there. Raises InputError, and leaves no sidecar, where they are not as many as the documents."""
        self._write(self._rows, {})
        self._write([], {_INDEX_KEY: _sha256(index).hex()})
        self._writer.close()
        self._file.close()
        if self._num_names != num_documents:
            self._half.unlink()
            raise InputError(
                f"{index}: expected the names of {num_documents} documents, found {self._num_names}; give the files that "
                "it was made of, in the same order, all of them"
            )
        self._half.replace(self._path)

    def _write(self, rows: Sequence[DocumentName], metadata: Mapping[str, str]) -> None:
        columns = {name: [getattr(row, name) for row in rows] for name in _SCHEMA.names}
        self._writer.write_batch(pa.record_batch(columns, schema=_SCHEMA), custom_metadata=metadata)


class Sidecar:
    """The names of the documents of one tokenized file, read in place."""

    def __init__(self, prefix: Path | str, index: Path) -> None:
        """Raises InputError where there is none, or where it belongs to another index."""
        path = sidecar_path(prefix)
        if not path.is_file():
            raise InputError(
                f"expected {path}, written with the tokenized file or by name_documents afterwards; found none"
            )
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        _, metadata = self._reader.get_batch_with_custom_metadata(self._reader.num_record_batches - 1)
        expected = metadata[_INDEX_KEY].decode()
        found = _sha256(index).hex()
        if expected != found:
            raise InputError(
                f"{path}: expected the index with SHA-256 {expected}, found {found}; {index} was made anew"
            )
        self._number = -1
        self._batch: pa.RecordBatch | None = None

    def name(self, ordinal: int) -> tuple[str, str]:
        """Source and document_id of document `ordinal`, from 0."""
        batch, row = self._at(ordinal)
        return batch.column(0)[row].as_py(), batch.column(1)[row].as_py()

    def document(self, ordinal: int) -> DocumentName:
        """All that is known of document `ordinal`, from 0."""
        batch, row = self._at(ordinal)
        return DocumentName(**{name: batch.column(name)[row].as_py() for name in _SCHEMA.names})

    def _at(self, ordinal: int) -> tuple[pa.RecordBatch, int]:
        number, row = divmod(ordinal, BATCH_ROWS)
        if number != self._number:
            self._number, self._batch = number, self._reader.get_batch(number)
        assert self._batch is not None
        return self._batch, row


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
