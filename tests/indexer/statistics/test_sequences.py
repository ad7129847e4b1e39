"""Statistics of one sequence against brute force, the standard library's Unicode tables and zlib."""

import unicodedata
import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from indexer.statistics.repetition import repeated_shares
from indexer.statistics.scripts import CLASSES, script_shares
from indexer.statistics.sequences import SCRIPT_COLUMNS, sequence_statistics
from indexer.tokenizer.token_bytes import bytes_of_tokens
from tests.conftest import byte_level_bpe

Sequences = list[list[int]]


def flat(sequences: Sequences, dtype: type = np.uint16) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0, *map(len, sequences)])
    return np.array([token for row in sequences for token in row], dtype), starts


def repeated_by_brute_force(row: list[int], gram: int) -> float:
    grams = [tuple(row[i : i + gram]) for i in range(len(row) - gram + 1)]
    inside = {i + k for i, found in enumerate(grams) if grams.count(found) > 1 for k in range(gram)}
    return len(inside) / len(row) if row else 0.0


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), max_size=40), min_size=1, max_size=5), st.integers(1, 8))
def test_repetition_is_what_brute_force_finds(sequences: Sequences, gram: int) -> None:
    found = repeated_shares(*flat(sequences), gram)
    assert found.tolist() == pytest.approx([repeated_by_brute_force(row, gram) for row in sequences])


def test_repetition_of_large_tokens_and_of_one_token() -> None:
    noise = np.random.default_rng(0).integers(0, 2**32 - 1, 3000).tolist()
    assert repeated_shares(*flat([noise, [7] * 3000, noise[:1500] * 2], np.uint32)).tolist() == [0, 1, 1]


def class_by_name(character: str) -> str | None:
    """The class of a letter by its Unicode name; None where the name does not decide it."""
    prefixes = {
        "LATIN ": "latin", "FULLWIDTH LATIN": "latin", "CJK ": "han", "HIRAGANA LETTER": "kana", "KATAKANA LETTER": "kana",
        "HALFWIDTH KATAKANA LETTER": "kana", "HANGUL": "hangul", "CYRILLIC": "cyrillic", "GREEK": "other_letter",
        "ARABIC LETTER": "other_letter", "DEVANAGARI LETTER": "other_letter", "HEBREW LETTER": "other_letter",
        "THAI CHARACTER": "other_letter",
    }  # fmt: skip
    phonetic = 0x1D00 <= ord(character) <= 0x1DBF  # a few Greek and Cyrillic letters among Latin ones
    if phonetic or unicodedata.category(character) not in ("Lu", "Ll", "Lo"):
        return None
    name = unicodedata.name(character, "")
    return next((kind for prefix, kind in prefixes.items() if name.startswith(prefix)), None)


def test_every_letter_is_of_the_script_that_its_name_says() -> None:
    tokenizer = byte_level_bpe(["words of no matter"], 300)
    bytes_of = bytes_of_tokens(tokenizer, 300)
    letters = [(chr(code), kind) for code in range(0x10000) if (kind := class_by_name(chr(code))) is not None]
    assert len(letters) > 30_000
    sequences = [tokenizer.encode(character).ids for character, _ in letters]
    found = script_shares(*flat(sequences), bytes_of)
    wrong = [
        (character, kind)
        for (character, kind), shares in zip(letters, found.tolist(), strict=True)
        if shares[CLASSES.index(kind)] != 1
    ]
    assert wrong == []


def test_shares_of_a_mixed_text() -> None:
    text = "Hello, world! 42\n全文検索は かんたん です。한국어 Привет αβγ <|endoftext|>"
    tokenizer = byte_level_bpe([text * 3], 400)
    bytes_of = bytes_of_tokens(tokenizer, 400)
    visible = text.replace("<|endoftext|>", "")  # a special token stands for no text
    visible = "".join(visible.split())
    expected = {
        "latin": 10, "han": 4, "kana": 7, "hangul": 3, "cyrillic": 6, "other_letter": 3, "digit": 2, "symbol": 3
    }  # fmt: skip
    assert sum(expected.values()) == len(visible)
    tokens, starts = flat([tokenizer.encode(text).ids])
    (shares,) = script_shares(tokens, starts, bytes_of).tolist()
    assert shares == pytest.approx([expected[name] / len(visible) for name in CLASSES], abs=1e-6)
    halves = script_shares(tokens, np.array([0, 1, len(tokens)]), bytes_of)
    assert np.isfinite(halves).all(), "a sequence may begin and end inside a character"


def test_vocabularies_that_are_not_byte_level() -> None:
    vocabulary = {"▁the": 0, "<0xE3>": 1, "<0x81>": 2, "<0x82>": 3, "##ing": 4, "x9": 9, "<unk>": 7}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>"])
    tokenizer.add_tokens(["né"])
    bytes_of = bytes_of_tokens(tokenizer, 11)
    pieces = [bytes(bytes_of.data[a:b]) for a, b in zip(bytes_of.starts, bytes_of.starts[1:], strict=False)]
    assert pieces == [b" the", b"\xe3", b"\x81", b"\x82", b"ing", b"", b"", b"", "né".encode(), b"x9", b""]
    (shares,) = script_shares(*flat([[1, 2, 3, 0, 4, 5]]), bytes_of).tolist()
    assert shares[CLASSES.index("kana")] == pytest.approx(1 / 7)
    (broken,) = script_shares(*flat([[1, 2, 0]]), bytes_of).tolist()
    assert broken[CLASSES.index("symbol")] == pytest.approx(1 / 4)


def test_the_table_of_a_shard() -> None:
    sequences = [[1, 2, 3] * 20, list(range(60)), []]
    segments = pa.table(
        {
            "ordinal": pa.array([0, 0, 0, 1], pa.int64()),
            "source": ["web", "web", "book", "web"],
            "document_id": ["a", "a", "a", "b"],
        }
    )
    tokens, starts = flat(sequences)
    found = sequence_statistics(tokens, starts, segments, None).to_pydict()
    assert (found["num_segments"], found["num_documents"]) == ([3, 1, 0], [2, 1, 0])
    assert found["repeated_share"] == [1, 0, 0]
    assert all(found[name] == [None] * 3 for name in SCRIPT_COLUMNS)
    data = np.array(sequences[0], "<u2").tobytes()
    assert found["compression_ratio"][0] == pytest.approx(len(data) / len(zlib.compress(data, 1)))
    assert found["compression_ratio"][2] == 1
    nothing = sequence_statistics(tokens, starts, segments.slice(0, 0), None).to_pydict()
    assert nothing["num_segments"] == [0, 0, 0]
