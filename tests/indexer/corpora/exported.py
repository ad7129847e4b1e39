"""Exports of published corpora: tokenized, packed by concat-and-cut, written by the real exporter on two ranks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from indexer.corpora.reader import CorpusDocument
from tests.conftest import byte_level_bpe
from tests.support.export_maker import MadeStep, make_attempt
from train_hooks import Segment
from train_hooks.export_format.writing.attempts import RunSpec

__all__ = ["LENGTH", "VOCABULARY", "export_documents", "save_tokenizer"]

LENGTH, VOCABULARY, WRITERS, SLOTS = 64, 1500, 2, 2


def save_tokenizer(path: Path, texts: Sequence[str], vocab_size: int = VOCABULARY) -> Path:
    """A tokenizer that has seen the texts; its id 0 is <|endoftext|>."""
    byte_level_bpe(list(texts), vocab_size).save(str(path))
    return path


def export_documents(
    run_dir: Path,
    documents: Sequence[CorpusDocument],
    tokenizer: Path,
    *,
    spelled: bool = True,
    around: bool = False,
    before: tuple[int, ...] = (),
    native: bool = False,
    with_tokenizer: bool = True,
) -> None:
    """Every document once, in an order that is not the corpus's, a separator behind each; the last sequence is padded.

    spelled: special tokens spelled out in a text are text. around: with those that the tokenizer puts around a text.
    before: tokens put before each text. native: under the corpus's own ids.
    """
    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.encode_special_tokens = spelled
    stream: list[tuple[int, int, int]] = []
    order = np.random.default_rng(7).permutation(len(documents)).tolist()
    for index in order:
        ids = [*before, *encoder.encode(documents[index].text, add_special_tokens=around).ids, 0]
        stream += [(token, index, offset) for offset, token in enumerate(ids)]
    names = [
        (document.source, (document.native_id if native else None) or document.document_id) for document in documents
    ]
    per_step = LENGTH * WRITERS * SLOTS
    stream += [(0, -1, 0)] * (-len(stream) % per_step)
    steps = []
    for begin in range(0, len(stream), per_step):
        parts = [stream[at : at + LENGTH] for at in range(begin, begin + per_step, LENGTH)]
        tokens = np.array([[token for token, _, _ in part] for part in parts])
        segments = [_segments(part, names) for part in parts]
        ranks = {rank: slice(rank * SLOTS, (rank + 1) * SLOTS) for rank in range(WRITERS)}
        steps.append(
            MadeStep(
                microbatches={rank: [tokens[place]] for rank, place in ranks.items()},
                segments={rank: [segments[place]] for rank, place in ranks.items()},
            )
        )
    spec = RunSpec(
        sequence_length=LENGTH, vocab_size=VOCABULARY, run_id="corpus", config={},
        tokenizer=tokenizer if with_tokenizer else None,
    )  # fmt: skip
    make_attempt(run_dir, spec, steps, num_writers=WRITERS)


def _segments(part: Sequence[tuple[int, int, int]], names: Sequence[tuple[str, str]]) -> list[Segment]:
    found: list[Segment] = []
    for position, (_, index, offset) in enumerate(part):
        if index < 0:
            break
        if position and part[position - 1][1] == index:
            last = found.pop()
            start, length, first = last.start, last.length + 1, last.document_token_offset
        else:
            start, length, first = position, 1, offset
        source, document_id = names[index]
        found.append(
            Segment(start=start, length=length, source=source, document_id=document_id, document_token_offset=first)
        )
    return found
