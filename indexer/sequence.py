"""More about one packed sequence than its tokens: its row, its neighbours, its tokens one by one, and its loss mask.

The row and the neighbours come from the index. The loss mask is not in the index: it is read from the export, which costs
reading the acknowledgements of one rank of the attempt. Where the trainer gave `loss_mask`, it is that; else positions whose
label is negative (torch's ignore_index is −100) count nothing.
"""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.reader import IndexReader, PackedSequence
from indexer.selection.visibility import EVERYTHING, Visibility
from train_hooks.export_format.records import Row, SequenceAddress
from train_hooks.export_format.tensors import decode_tensor

__all__ = ["describe_row", "describe_tokens"]

MASKS, LABELS = ("loss_mask", "loss_weights"), ("labels", "label", "targets", "target")


def describe_row(reader: IndexReader, sequence: PackedSequence, visibility: Visibility = EVERYTHING) -> dict[str, Any]:
    """Its row in the export, and the addresses of the sequences before and after it on its rank, in its attempt.

    leaf: its hash as the export committed it, hexadecimal. The mean loss is null where a part of the sequence is hidden.
    evidence, matched: null where they were not recorded. relation: null where the forward got what is recorded.
    """
    columns = sequence.shard.sequences
    status, sample_index, loss, leaf = (
        columns.column(name)[sequence.ordinal].as_py() for name in ("status", "sample_index", "loss", "leaf")
    )
    evidence, matched, relation = (
        columns.column(name)[sequence.ordinal].as_py() for name in ("evidence", "matched", "relation")
    )
    if loss is None and reader.has_late_losses:
        loss = _late_loss(reader, sequence.address)
    visible = reader.visible_tokens(sequence, reader.visible_under(visibility))
    finite = loss is not None and bool(np.isfinite(loss))
    return {
        "status": status,
        "sample_index": sample_index,
        "loss": loss if finite and visible.all() else None,
        "evidence": evidence,
        "matched": matched,
        "relation": relation,
        "leaf": leaf.hex(),
        "before": _neighbour(reader, sequence, -1),
        "after": _neighbour(reader, sequence, 1),
    }


def describe_tokens(
    reader: IndexReader, sequence: PackedSequence, visibility: Visibility = EVERYTHING
) -> dict[str, Any]:
    """The text of each token, and whether the label at its position counted; null where hidden or not known.

    Joined, the texts are the text; a character of several tokens is the last one's. Raises DamageError where the export does
    not hold the row whole.
    """
    visible = reader.visible_tokens(sequence, reader.visible_under(visibility))
    texts = None if reader.info.tokenizer_file is None else _texts(reader, sequence, visible)
    row = reader.run.attempt(sequence.address.attempt).row(sequence.address)
    name, mask = (None, None) if row is None else _loss_mask(row)
    shown_mask = None
    if mask is not None:
        shown_mask = [value if shown else None for value, shown in zip(mask.tolist(), visible.tolist(), strict=True)]
    return {"token_texts": texts, "loss_mask": shown_mask, "loss_mask_of": name}


def _texts(reader: IndexReader, sequence: PackedSequence, visible: npt.NDArray[np.bool_]) -> list[str | None]:
    """What each token adds to the text; what is visible is decoded stretch by stretch."""
    texts: list[str | None] = [None] * len(sequence.tokens)
    edges = [0, *(np.flatnonzero(np.diff(visible)) + 1).tolist(), len(texts)]
    for begin, end in itertools.pairwise(edges):
        if begin < end and visible[begin]:
            texts[begin:end] = reader.tokenizer.pieces(sequence.tokens[begin:end])
    return texts


def _loss_mask(row: Row) -> tuple[str | None, npt.NDArray[np.bool_] | None]:
    """(name of the tensor, bool [length]) of a row; (None, None) where it has none."""
    named = {record.name.rpartition(".")[2]: record for record in row.tensors}
    for name in (*MASKS, *LABELS):
        record = named.get(name)
        if record is None or record.shape != row.tokens.shape:
            continue
        values: npt.NDArray[Any] = decode_tensor(record, row.tokens, row.segments)
        return name, np.asarray(values != 0 if name in MASKS else values >= 0, np.bool_)
    return None, None


def _late_loss(reader: IndexReader, address: SequenceAddress) -> float | None:
    """The loss of a sequence that came after its step was written; None where none did."""
    place = (address.attempt, address.global_step, address.dp_rank, address.microbatch, address.slot)
    found = reader.sql(
        "SELECT loss FROM late_loss_table WHERE segment IS NULL AND attempt = ? AND global_step = ? AND dp_rank = ? "
        "AND microbatch = ? AND slot = ?",
        place,
    )
    return found[0]["loss"] if found else None


def _neighbour(reader: IndexReader, sequence: PackedSequence, way: int) -> str | None:
    """The nearest sequence of the same attempt and dp_rank, `way` being −1 for before and 1 for after."""
    address, own = sequence.address, sequence.shard
    shards = sorted(
        (shard for shard in reader.shards if shard.info.attempt == address.attempt),
        key=lambda shard: way * shard.info.first_step,
    )
    for shard in shards:
        if way * shard.info.first_step < way * own.info.first_step:
            continue
        ordinals = np.flatnonzero(shard.dp_ranks == address.dp_rank)
        if shard is own:
            ordinals = ordinals[way * ordinals > way * sequence.ordinal]
        if len(ordinals):
            return str(shard.address(int(ordinals[0 if way > 0 else -1])))
    return None
