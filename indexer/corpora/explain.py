"""Why a segment's tokens are not those that its document gives."""

import numpy as np
import numpy.typing as npt

from indexer.corpora.reader import CorpusDocument
from indexer.corpora.source_tokenizer import SourceTokenizer
from indexer.corpora.verify_records import CorpusFinding, Reason
from train_hooks.export_format.records import Row

__all__ = ["explain_difference", "find_tokens"]

Ids = npt.NDArray[np.int64]
SHOWN, TELLING, EDGE = 40, 16, 4


def explain_difference(
    document: CorpusDocument, row: Row, segment_number: int, ids: Ids, tokenizer: SourceTokenizer, own: SourceTokenizer
) -> CorpusFinding:
    """Of a segment of `row` that is not at its place in `ids`, the document's tokens. own: the run's tokenizer."""
    segment = row.segments[segment_number]
    tokens = row.tokens[segment.start : segment.start + segment.length].astype(np.int64)
    while len(tokens) and int(tokens[-1]) in own.specials:
        tokens = tokens[:-1]
    reason, message = _reason(document.text, tokens, ids, segment.document_token_offset, tokenizer, own)
    return CorpusFinding(
        reason=reason, source=segment.source, document_id=segment.document_id, place=f"{document.file}#{document.number}",
        address=str(row.address), start=segment.start, length=segment.length,
        document_token_offset=segment.document_token_offset, message=message,
    )  # fmt: skip


def _reason(
    text: str, tokens: Ids, ids: Ids, offset: int, tokenizer: SourceTokenizer, own: SourceTokenizer
) -> tuple[Reason, str]:
    seen = own.decode(tokens)
    source = tokenizer.decode(ids[offset : offset + len(tokens)]) if offset >= 0 else ""
    if len(tokens) and seen == source:
        return (
            Reason.OTHER_TOKENIZER,
            "the same text in other tokens; give the tokenizer that made them with --tokenizer",
        )
    place = find_tokens(ids, tokens) if len(tokens) else -1
    if place >= 0 and offset >= 0:
        return Reason.OTHER_PLACE, f"its tokens stand at token {place} of the document: the text before them was edited"
    core = seen.strip("\ufffd").strip()
    if len(core) >= TELLING and core in text and not _same_tokenizer(tokens, seen, tokenizer):
        return (
            Reason.OTHER_TOKENIZER,
            "the same text in other tokens; give the tokenizer that made them with --tokenizer",
        )
    if not len(tokens) or offset < 0:
        return Reason.EDITED_TEXT, f"the document has {len(ids)} tokens, and nowhere these"
    expected = ids[offset : offset + len(tokens)]
    common = min(len(expected), len(tokens))
    differs = np.flatnonzero(expected[:common] != tokens[:common])
    first = int(differs[0]) if len(differs) else common
    if first == len(expected) < len(tokens):
        return Reason.EDITED_TEXT, f"the document ends at its token {len(ids)}, the segment at {offset + len(tokens)}"
    was, now = (_shown(decoder.decode(part[first:])) for decoder, part in ((own, tokens), (tokenizer, expected)))
    return (
        Reason.EDITED_TEXT,
        f"from token {offset + first} of the document on, training saw {was}, the source has {now}",
    )


def _same_tokenizer(tokens: Ids, seen: str, tokenizer: SourceTokenizer) -> bool:
    """Whether the tokenizer would cut a text of its own as `tokens` does, its edges left out."""
    inner = tokens[EDGE:-EDGE] if len(tokens) > 3 * EDGE else tokens
    ways = [tokenizer.plain([seen])[0], *(ids for _, ids in tokenizer.ways(seen))]
    return any(find_tokens(ids, inner) >= 0 for ids in ways)


def _shown(text: str) -> str:
    return repr(text[:SHOWN]) + ("…" if len(text) > SHOWN else "")


def find_tokens(ids: Ids, tokens: Ids) -> int:
    """Where `tokens` (not empty) first stand in `ids`, -1 where they do not."""
    for place in np.flatnonzero(ids == tokens[0]).tolist():
        if np.array_equal(ids[place : place + len(tokens)], tokens):
            return place
    return -1
