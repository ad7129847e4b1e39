"""Texts that are joined from the tokens' bytes are those that the tokenizers library decodes."""

import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from indexer.tokenizer.token_bytes import token_bytes
from indexer.tokenizer.tokenizer import RunTokenizer
from tests.conftest import byte_level_bpe, read_documents
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.writing.attempts import RunSpec, open_or_create_run

VOCAB = 1500


def byte_level() -> Tokenizer:
    texts = list(read_documents("devils-dictionary", 10).values()) + list(read_documents("tatoeba-ja", 3).values())
    tokenizer = byte_level_bpe(texts, 1400)
    tokenizer.add_special_tokens(["<｜end▁of▁text｜>", AddedToken("<extra id>"), "<|Ġ|>", "\u00ad\u00a0"])
    tokenizer.add_tokens([AddedToken("学習データ"), AddedToken("  ")])
    return tokenizer


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "##re": 2, "cat": 3, "é": 4}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def sentence_pieces() -> Tokenizer:
    vocabulary = {"<unk>": 0, "▁the": 1, "re": 2, "▁cat": 3} | {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def no_decoder() -> Tokenizer:
    return Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))


@pytest.mark.parametrize("make", [byte_level, word_pieces, sentence_pieces, no_decoder])
def test_decode_many_is_decode(make: object, tmp_path: Path) -> None:
    tokenizer: Tokenizer = make()  # type: ignore[operator]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    spec = RunSpec(sequence_length=8, vocab_size=VOCAB, tokenizer=tmp_path / "tokenizer.json", config={})
    open_or_create_run(OsFileSystem(), tmp_path / "run", spec)
    run = RunTokenizer(RunReader(tmp_path / "run"))
    assert (token_bytes(tokenizer, VOCAB) is not None) == (make is byte_level)
    chance = random.Random(1)
    known = sorted(tokenizer.get_vocab().values())
    many = [
        [chance.choice((chance.choice(known[:300]), chance.choice(known))) for _ in range(n % 40)] for n in range(600)
    ]
    many.append([VOCAB - 1, known[-1], VOCAB - 1])
    expected = [tokenizer.decode(ids, skip_special_tokens=False) for ids in many]
    assert run.decode_many([np.array(ids, np.uint16) for ids in many]) == expected
    assert [run.decode(np.array(ids, np.uint16)) for ids in many] == expected
    texts = [" the cat", "the re", "the é", "a b"] if make is not byte_level else expected
    for ids in [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]:
        assert "".join(run.pieces(ids)) == run.decode(ids)
    for ids in many:
        pieces = run.pieces(np.array(ids, np.uint16))
        assert len(pieces) == len(ids) and (make is not byte_level or "".join(pieces) == run.decode(ids))
