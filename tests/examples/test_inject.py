"""`--inject`: which sequences are spoilt, and how."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import CORPUS

EXAMPLES = CORPUS.parent
GLOBAL_BATCH, LENGTH = 4, 64


def test_half_of_the_sequences_of_a_step_are_spoilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    import documents
    import inject
    import packing
    from errors import InputError

    shutil.copy(CORPUS / "devils-dictionary.jsonl.gz", tmp_path)
    texts = documents.read_corpus(tmp_path)
    documents.train_tokenizer(texts, 512, tmp_path / "tokenizer.json")
    corpus = documents.tokenize(texts, documents.load_tokenizer(tmp_path / "tokenizer.json"))
    whole = packing.PackedSequences(corpus, {"devils-dictionary": 1.0}, LENGTH, 1, 5 * GLOBAL_BATCH)
    spoilt = inject.InjectedSequences(whole, inject.parse_injections("garbage@2,repeat@4"), GLOBAL_BATCH)
    changed = [n for n in range(len(whole)) if not np.array_equal(whole[n].tokens, spoilt[n].tokens)]
    assert set(changed) <= {4, 6, 12, 14} and {4, 6, 14} <= set(changed)
    assert len(set(spoilt[4].tokens.tolist())) > 50 and spoilt[4].segments == whole[4].segments
    repeated = spoilt[14]
    first = whole[12].segments[0]
    assert {(part.source, part.document_id) for part in repeated.segments} == {(first.source, first.document_id)}
    assert sum(part.length for part in repeated.segments) == LENGTH and len(repeated.tokens) == LENGTH + 1
    assert np.array_equal(repeated.tokens, spoilt[12].tokens)
    for bad in ("noise@3", "garbage@0", "garbage", "repeat@x"):
        with pytest.raises(InputError, match="kind@step"):
            inject.parse_injections(bad)
