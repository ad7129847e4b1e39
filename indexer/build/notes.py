"""What the export says of a step in notes, after the step was written: metrics, and losses of rows.

A note is a frame that holds step records alone. How many notes a sealed file has follows from its seal, so a writer
without notes costs no acknowledgement records. The notes themselves are read anew each time: they are few.
"""

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa

from indexer.build.export_rows import record_table
from train_hooks.export_format.acknowledgement import AckKind, ack_size, decode_sealed_acks
from train_hooks.export_format.paths import IN_PROGRESS, SegmentFileName
from train_hooks.export_format.reading.reader import AttemptReader, WriterLog

__all__ = ["losses_of_notes", "notes_of_ranks", "records_of_notes"]

LOSS_SCHEMA = pa.schema(
    [
        ("global_step", pa.int64()), ("dp_rank", pa.int32()), ("microbatch", pa.int32()), ("slot", pa.int32()),
        ("segment", pa.int32()), ("loss", pa.float32()),
    ]
)  # fmt: skip


def notes_of_ranks(attempt: AttemptReader) -> dict[int, int]:
    """How many notes each dp_rank has, without those that have none. Reads seals, and the records of open files."""
    there = set(attempt.run.file_system.names(attempt.directory))
    names = {parsed[0] for entry in there if (parsed := SegmentFileName.parse(entry)) is not None}
    found: Counter[int] = Counter()
    for name in names:
        found[name.dp_rank] += _num_notes(attempt, name, there)
    return {dp_rank: number for dp_rank, number in sorted(found.items()) if number > 0}


def _num_notes(attempt: AttemptReader, name: SegmentFileName, there: set[str]) -> int:
    """The notes of one file. Of an open file also those of records that a later file does not continue."""
    size = ack_size(attempt.info.format_version)
    seal = attempt.seal(name, there)
    if seal is not None:  # all records but those of the schema, the steps, and the end, which a repaired file lacks
        return max(0, seal.acks.size_bytes // size - 1 - seal.num_steps - (seal.reason != "repaired"))
    data = _open_records(attempt, name)
    acks = decode_sealed_acks(data[: len(data) // size * size], attempt.info.format_version)
    return (
        1 if acks is None else len(acks.indices_of(AckKind.NOTE))
    )  # records that do not hold: `writers` says what of them


def _open_records(attempt: AttemptReader, name: SegmentFileName) -> bytes:
    for path in (attempt.directory / (name.acks + IN_PROGRESS), attempt.directory / name.acks):
        try:
            return attempt.run.file_system.read(path)
        except FileNotFoundError:  # sealed meanwhile, or made just now
            continue
    return b""


def records_of_notes(attempt: AttemptReader, writers: Mapping[int, WriterLog]) -> pa.Table:
    """Metrics that came after their step was committed, as trainers give them that log every few steps."""
    records = [
        (dp_rank, record)
        for dp_rank, writer in writers.items()
        for file in writer.files
        for frame in attempt.frames_of(file, [file.acks[int(at)] for at in file.acks.indices_of(AckKind.NOTE)])
        for record in frame.records
    ]
    return record_table(records)


def losses_of_notes(attempt: AttemptReader, writers: Mapping[int, WriterLog]) -> pa.Table:
    """Losses that came after their step was written: of rows (segment null) and of segments, each once.

    Where the trainer gave a loss twice, the first one counts.
    """
    found: dict[tuple[int, int, int, int, int | None], float] = {}
    for address, row in attempt.late_losses(dict(writers)):
        place = (address.global_step, address.dp_rank, address.microbatch, address.slot)
        for segment, loss in ((None, row.loss), *enumerate(row.segments or ())):
            if loss is not None:
                found.setdefault((*place, segment), loss)
    columns = zip(*((*place, loss) for place, loss in found.items()), strict=True)
    if not found:
        return LOSS_SCHEMA.empty_table()
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, LOSS_SCHEMA, strict=True)], LOSS_SCHEMA
    )
