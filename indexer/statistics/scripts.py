"""Which scripts a sequence is written in: shares of its characters, white space left out, without decoding it as text.

Each token id stands for some bytes; the bytes of a sequence are walked as UTF-8, across token boundaries, and each
character is looked up in a table of classes. Special tokens count for nothing, broken UTF-8 counts as a symbol.
"""

import unicodedata
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.jit import jit
from indexer.tokenizer.token_bytes import TokenBytes

__all__ = ["CLASSES", "script_shares"]

CLASSES = ("latin", "han", "kana", "hangul", "cyrillic", "other_letter", "digit", "symbol")
_OTHER, _DIGIT, _SYMBOL, _SPACE = 5, 6, 7, 255
_RANGES = {
    0: ((0x41, 0x5A), (0x61, 0x7A), (0xAA, 0xAA), (0xBA, 0xBA), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x2AF),
        (0x1D00, 0x1DBF), (0x1E00, 0x1EFF), (0x2183, 0x2184), (0x2C60, 0x2C7F), (0xA720, 0xA7FF), (0xAB30, 0xAB64),
        (0xAB66, 0xAB6F), (0xFB00, 0xFB06), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A)),
    1: ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3038, 0x303B), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
    2: ((0x3041, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    3: ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    4: ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
}  # fmt: skip


def script_shares(tokens: NDArray[Any], starts: NDArray[np.int64], bytes_of: TokenBytes) -> NDArray[np.float32]:
    """Shares of each sequence's characters by class, f32 [s, len(CLASSES)]; zeros where it has none.

    Sequence i is tokens[starts[i]:starts[i + 1]], starts i64 [s + 1].
    """
    counts = np.zeros((len(starts) - 1, 256), np.int64)
    _count_characters(tokens, starts, bytes_of.data, bytes_of.starts, _class_table(), counts)
    counts = counts[:, : len(CLASSES)]
    return np.asarray(counts / np.maximum(1, counts.sum(axis=1, keepdims=True)), np.float32)


@cache
def _class_table() -> NDArray[np.uint8]:
    """Class of each code point, u8 [0x110000]."""
    table = np.full(0x110000, _SYMBOL, np.uint8)
    for code in range(0x20000):
        category = unicodedata.category(chr(code))
        if category[0] in "LM":
            table[code] = _OTHER
        elif category == "Nd":
            table[code] = _DIGIT
        elif chr(code).isspace():
            table[code] = _SPACE
    for number, ranges in _RANGES.items():
        for first, last in ranges:
            table[first : last + 1] = number
    return table


@jit
def _count_characters(
    tokens: NDArray[Any],
    starts: NDArray[np.int64],
    data: NDArray[np.uint8],
    byte_starts: NDArray[np.int64],
    classes: NDArray[np.uint8],
    counts: NDArray[np.int64],
) -> None:
    for sequence in range(len(counts)):
        code, missing = 0, 0
        for place in range(starts[sequence], starts[sequence + 1]):
            token = int(tokens[place])
            for k in range(byte_starts[token], byte_starts[token + 1]):
                byte = int(data[k])
                if missing > 0 and byte & 0xC0 == 0x80:
                    code, missing = (code << 6) | (byte & 0x3F), missing - 1
                    if missing == 0:
                        counts[sequence, classes[min(code, 0x10FFFF)]] += 1
                    continue
                if missing > 0 or 0x80 <= byte < 0xC0 or byte >= 0xF8:
                    counts[sequence, _SYMBOL] += 1
                missing = 0
                if byte < 0x80:
                    counts[sequence, classes[byte]] += 1
                elif 0xC0 <= byte < 0xE0:
                    code, missing = byte & 0x1F, 1
                elif 0xE0 <= byte < 0xF0:
                    code, missing = byte & 0x0F, 2
                elif 0xF0 <= byte < 0xF8:
                    code, missing = byte & 0x07, 3
        if missing > 0:
            counts[sequence, _SYMBOL] += 1
