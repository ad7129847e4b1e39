"""Changes that somebody might want to see nowhere: losses, status, evidence, metrics, notes, and what leaves cover.

Each function changes one value of an opened file in place and says what it did, or None where the file has nothing of
that kind. `effective` gives what a file says with the attempt's defaults applied, so that a change can be told from
another way to say the same.
"""

import json
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from tests.proofs.opened_files import Compacted, OpenedFile
from train_hooks.export_format.records import AttemptInfo, Evidence, Matched, StepStatus
from train_hooks.export_format.removal import leaf_of_row
from train_hooks.export_format.schema import row_fields, rows_of_batch

__all__ = ["CHANGES", "effective"]

Item = dict[str, Any]
Change = Callable[[random.Random, OpenedFile], str | None]
_LOSSES = (None, 0.0, -0.0, 0.5, 1.0, 7.25, float("nan"), float("inf"))
_RELATIONS = (None, "flatten", "[:, :-1]", "rows 0:1")


def effective(opened: OpenedFile) -> list[object]:
    """All that the file says, frame by frame."""
    attempt = opened.attempt.info
    return [
        (frame.get("file_number"), frame["frame_number"], frame["step_records"] or "",
         [_effective(row, attempt) for row in opened.rows_of(frame)])
        for frame in opened.frames
    ]  # fmt: skip


def _effective(row: Item, attempt: AttemptInfo) -> Mapping[str, object]:
    default = attempt.default_tensor_evidence
    tensors = []
    for tensor in row["tensors"]:
        data: Any = tensor["data"]
        if tensor["encoding"] == "removed":
            data = json.loads(tensor["data"])
            data["evidence"] = [word or default for word in data["evidence"]]
        tensors.append({**tensor, "data": data, "evidence": tensor["evidence"] or default})
    return {
        **row,
        "tensors": tensors,
        "segments": [{**part, "loss": _bits(part["loss"])} for part in row["segments"]],
        "loss": _bits(row["loss"]),
        "evidence": row["evidence"] or attempt.default_evidence,
        "matched": row["matched"] or attempt.default_matched,
        "relation": row["relation"] or "",
    }


def _bits(loss: float | None) -> bytes | None:
    return None if loss is None else struct.pack("<f", loss)


def _other(rng: random.Random, before: object, values: Sequence[object]) -> Any:
    """Another value than there was."""
    return rng.choice([value for value in values if value is not before and value != before])


def _other_loss(rng: random.Random, before: float | None) -> float | None:
    return rng.choice([value for value in _LOSSES if _bits(value) != _bits(before)])


def loss(rng: random.Random, opened: OpenedFile) -> str | None:
    """The loss of a row."""
    if not opened.rows:
        return None
    row = rng.choice(opened.rows)
    before, row["loss"] = row["loss"], _other_loss(rng, row["loss"])
    return f"loss {before} → {row['loss']}"


def segment_loss(rng: random.Random, opened: OpenedFile) -> str | None:
    """The loss of a segment."""
    parts = [part for row in opened.rows for part in row["segments"]]
    if not parts:
        return None
    part = rng.choice(parts)
    before, part["loss"] = part["loss"], _other_loss(rng, part["loss"])
    return f"segment loss {before} → {part['loss']}"


def status(rng: random.Random, opened: OpenedFile) -> str | None:
    """The status of all rows of a step, or of one."""
    steps = [rows for frame in opened.frames if (rows := opened.rows_of(frame))]
    if not steps:
        return None
    rows = list(rng.choice(steps))
    new = _other(rng, rows[0]["status"], [word.value for word in StepStatus])
    for row in rows if rng.random() < 0.5 else rows[:1]:
        row["status"] = new
    return f"status → {new}"


def _word(name: str, default: str, values: Sequence[str]) -> Change:
    def change(rng: random.Random, opened: OpenedFile) -> str | None:
        if not opened.rows:
            return None
        row = rng.choice(opened.rows)
        of_attempt = getattr(opened.attempt.info, default)
        before = row[name] or of_attempt
        new = _other(rng, before, values)
        row[name] = new
        return f"{name} {before} → {new}"

    return change


def default_instead(rng: random.Random, opened: OpenedFile) -> str | None:
    """Evidence or matched of a row that differs from the attempt's default becomes the default."""
    found = [(row, name) for row in opened.rows for name in ("evidence", "matched") if row[name] is not None]
    if not found:
        return None
    row, name = rng.choice(found)
    row[name] = None
    return f"{name} → the attempt's default"


def relation(rng: random.Random, opened: OpenedFile) -> str | None:
    """What the forward got."""
    if not opened.rows:
        return None
    row = rng.choice(opened.rows)
    before, row["relation"] = row["relation"], _other(rng, row["relation"], _RELATIONS)
    return f"relation {before} → {row['relation']}"


def tensor_evidence(rng: random.Random, opened: OpenedFile) -> str | None:
    """How a tensor is known."""
    found = [tensor for row in opened.rows for tensor in row["tensors"] if tensor["encoding"] != "removed"]
    if not found:
        return None
    tensor = rng.choice(found)
    before = tensor["evidence"] or opened.attempt.info.default_tensor_evidence
    tensor["evidence"] = _other(rng, before, [word.value for word in Evidence])
    return f"tensor evidence {before} → {tensor['evidence']}"


def removed_evidence(rng: random.Random, opened: OpenedFile) -> str | None:
    """How a tensor was known, in a row that lost its tensors."""
    found = [tensor for row in opened.rows for tensor in row["tensors"] if tensor["encoding"] == "removed"]
    found = [tensor for tensor in found if json.loads(tensor["data"])["evidence"]]
    if not found:
        return None
    tensor = rng.choice(found)
    info = json.loads(tensor["data"])
    place = rng.randrange(len(info["evidence"]))
    before = info["evidence"][place] or opened.attempt.info.default_tensor_evidence
    info["evidence"][place] = _other(rng, before, [word.value for word in Evidence])
    _set_removal(tensor, info)
    return f"evidence of a removed tensor {before} → {info['evidence'][place]}"


def removed_commitment(rng: random.Random, opened: OpenedFile) -> str | None:
    """The commitment of a removed chunk, or of the tensors."""
    found = [tensor for row in opened.rows for tensor in row["tensors"] if tensor["encoding"] == "removed"]
    if not found:
        return None
    tensor = rng.choice(found)
    info = json.loads(tensor["data"])
    if rng.random() < 0.5 or not info["chunks"]:  # a row may have lost its tensors alone
        info["tensors"] = rng.randbytes(32).hex()
    else:
        info["chunks"][rng.choice([*info["chunks"]])] = rng.randbytes(32).hex()
    _set_removal(tensor, info)
    return "a commitment of what was removed"


def _set_removal(tensor: Item, info: object) -> None:
    tensor["data"] = json.dumps(info).encode()
    tensor["shape"] = [len(tensor["data"])]


def sample_index(rng: random.Random, opened: OpenedFile) -> str | None:
    """Which sample a row is."""
    if not opened.rows:
        return None
    row = rng.choice(opened.rows)
    row["sample_index"] = _other(rng, row["sample_index"], [None, 0, 5, 1 << 50])
    return "sample_index"


def _whole_rows(opened: OpenedFile) -> list[Item]:
    return [row for row in opened.rows if all(tensor["encoding"] != "removed" for tensor in row["tensors"])]


def tokens(rng: random.Random, opened: OpenedFile) -> str | None:
    """A token, perhaps with the leaf made anew: the run's secret is there."""
    rows = _whole_rows(opened)
    if not rows:
        return None
    row = rng.choice(rows)
    data, run = bytearray(row["tokens"]), opened.attempt.run
    place = rng.randrange(len(data) // 2) * 2 if run.info.token_dtype == "uint16" else rng.randrange(len(data) // 4) * 4
    data[place] = 0 if data[place] else 1
    row["tokens"] = bytes(data)
    return f"a token{_new_leaf(rng, opened, row)}"


def document(rng: random.Random, opened: OpenedFile) -> str | None:
    """Which document a segment is of."""
    parts = [(row, part) for row in _whole_rows(opened) for part in row["segments"]]
    if not parts:
        return None
    row, part = rng.choice(parts)
    name = rng.choice(["source", "document_id"])
    part[name] += "x"
    return f"the {name} of a segment{_new_leaf(rng, opened, row)}"


def _new_leaf(rng: random.Random, opened: OpenedFile, row: Item) -> str:
    if rng.random() < 0.5:
        return ""
    run, fields = opened.attempt.run, row_fields(opened.attempt.info.format_version)
    batch = pa.RecordBatch.from_pylist([{field.name: row[field.name] for field in fields}], schema=pa.schema(fields))
    (made,) = rows_of_batch(batch, run.info, opened.attempt.info, opened.dp_rank)
    row["leaf"] = leaf_of_row(run.secret(), made)
    return ", with its leaf"


def tensor(rng: random.Random, opened: OpenedFile) -> str | None:
    """A constant of a tensor, or its name."""
    found = [(row, tensor) for row in _whole_rows(opened) for tensor in row["tensors"]]
    if not found:
        return None
    row, item = rng.choice(found)
    item["name"] += "x"
    return f"the name of a tensor{_new_leaf(rng, opened, row)}"


def _recorded(opened: OpenedFile, *, notes: bool | None) -> list[tuple[Item, list[Item]]]:
    """Frames and their step records; notes: of frames without rows, of those with rows, or of both."""
    return [
        (frame, json.loads(frame["step_records"]))
        for frame in opened.frames
        if frame["step_records"] and notes in (None, not frame["num_rows"])
    ]


def _set_records(frame: Item, records: Sequence[Item]) -> None:
    frame["step_records"] = json.dumps(records, ensure_ascii=False) if records else None


def _metrics(*, notes: bool) -> Change:
    def change(rng: random.Random, opened: OpenedFile) -> str | None:
        found = [(frame, records) for frame, records in _recorded(opened, notes=notes) if records[0]["values"]]
        if not found:
            return None
        frame, records = rng.choice(found)
        values = records[0]["values"]
        name = rng.choice([*values])
        before, values[name] = values[name], _other(rng, values[name], [0.0, 0.25, "NaN", "Infinity", -7.5])
        _set_records(frame, records)
        return f"metric {name} {before} → {values[name]}{' in a note' if notes else ''}"

    return change


def late_loss(rng: random.Random, opened: OpenedFile) -> str | None:
    """A loss that came late: its value, or whose it is."""
    found = [(frame, records) for frame, records in _recorded(opened, notes=True) if records[0].get("rows")]
    if not found:
        return None
    frame, records = rng.choice(found)
    row = rng.choice(records[0]["rows"])
    which = rng.choice([0, 1, 2])
    row[which] = row[which] + 1 if which < 2 else _other(rng, row[2], [None, 0.5, 2.0, "NaN"])
    _set_records(frame, records)
    return "a late loss"


def record_field(rng: random.Random, opened: OpenedFile) -> str | None:
    """The step, kind, time or text of a step record; of a gap the number of its rows."""
    found = _recorded(opened, notes=None)
    if not found:
        return None
    frame, records = rng.choice(found)
    record = rng.choice(records)
    name = rng.choice(["global_step", "kind", "unix_time_s", "text"])
    values: dict[str, Sequence[object]] = {
        "global_step": [1, 2, 3], "kind": ["metrics", "gap", "losses"], "unix_time_s": [0.0, 9.0],
        "text": [None, "because", "for no reason"],
    }  # fmt: skip
    record[name] = _other(rng, record[name], values[name])
    _set_records(frame, records)
    return f"the {name} of a step record"


def record_gone(rng: random.Random, opened: OpenedFile) -> str | None:
    """A step record less, or one more."""
    found = _recorded(opened, notes=None)
    if not found:
        return None
    frame, records = rng.choice(found)
    record = records.pop(rng.randrange(len(records)))
    if rng.random() < 0.5:
        records += [record, record]
    _set_records(frame, records)
    return "a step record less" if record not in records else "a step record doubled"


def records_swapped(rng: random.Random, opened: OpenedFile) -> str | None:
    """Two frames have each other's step records."""
    found = {frame["step_records"] or "": frame for frame in opened.frames}
    if len(found) < 2:
        return None
    first, second = rng.sample([found[text] for text in sorted(found)], 2)
    first["step_records"], second["step_records"] = second["step_records"], first["step_records"]
    return "step records swapped"


def frames_swapped(rng: random.Random, opened: OpenedFile) -> str | None:
    """Two steps have each other's rows."""
    found = [frame for frame in opened.frames if frame["num_rows"]]
    pairs = [(a, b) for a in found for b in found if a is not b and a["num_rows"] == b["num_rows"]]
    if not pairs or not isinstance(opened, Compacted):
        return None
    first, second = rng.choice(pairs)
    for name in ("row_group", "first_row"):
        first[name], second[name] = second[name], first[name]
    return "rows of two steps swapped"


def frame_gone(rng: random.Random, opened: OpenedFile) -> str | None:
    """A frame less: a note, or a step."""
    if not isinstance(opened, Compacted) or not opened.frames:
        return None
    frame = opened.frames.pop(rng.randrange(len(opened.frames)))
    return f"frame {frame['frame_number']} is gone"


CHANGES: Mapping[str, Change] = {
    "loss": loss,
    "segment loss": segment_loss,
    "status": status,
    "evidence": _word("evidence", "default_evidence", [word.value for word in Evidence]),
    "matched": _word("matched", "default_matched", [word.value for word in Matched]),
    "default instead": default_instead,
    "relation": relation,
    "tensor evidence": tensor_evidence,
    "removed evidence": removed_evidence,
    "removed commitment": removed_commitment,
    "metrics": _metrics(notes=False),
    "metrics in notes": _metrics(notes=True),
    "late losses": late_loss,
    "step record": record_field,
    "step records": record_gone,
    "step records swapped": records_swapped,
    "sample index": sample_index,
    "tokens": tokens,
    "documents": document,
    "tensors": tensor,
    "frames swapped": frames_swapped,
    "frame gone": frame_gone,
}
"""Those of the first sixteen are under record commitments, or under what a removal record has; the rest under leaves."""
