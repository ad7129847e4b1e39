"""Opening what is not a whole span index."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from indexer.spans import arrays
from indexer.spans.build import build_span_arrays


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    build_span_arrays([np.arange(300), np.arange(7)], np.uint16, tmp_path)
    return tmp_path


def with_header(**changes: object) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        fields = json.loads(data[: arrays.PAGE]) | changes
        return json.dumps(fields).encode().ljust(arrays.PAGE - 1) + b"\n" + data[arrays.PAGE :]

    return edit


def test_shapes_and_dtypes(shard: Path) -> None:
    opened = arrays.open_span_arrays(shard)
    assert (opened.num_tokens, opened.num_sequences, opened.separator) == (309, 2, 65535)
    shapes = {name: (getattr(opened, name).dtype.str, getattr(opened, name).shape) for name in arrays.ARRAYS}
    assert shapes == {
        "tokens": ("<u2", (309,)),
        "sequence_starts": ("<i8", (3,)),
        "suffix_array": ("<i4", (309,)),
        "fingerprints": ("<u2", (309,)),
        "prefix_table": ("<u8", (3, 2)),
        "block_range": ("<i4", (2, 2)),
        "superblock_range": ("<i4", (1, 2)),
    }


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data[:-1], "expected 32768 bytes, found 32767"),
        (lambda data: data + b"\0", "expected 32768 bytes, found 32769"),
        (lambda data: data[:100], "found no header"),
        (lambda _: b"", "found no header"),
        (lambda data: bytes(arrays.PAGE) + data[arrays.PAGE :], "did not finish"),
        (lambda data: b"[1]".ljust(arrays.PAGE) + data[arrays.PAGE :], "found no header"),
        (with_header(version=1), "version 3, found 'kiseki span index' version 1"),
        (with_header(format="something"), "found 'something'"),
        (with_header(token_dtype="uint8"), "expected uint16 or uint32, found uint8"),
        (with_header(token_dtype="nonsense"), "expected uint16 or uint32, found 'nonsense'"),
        (with_header(num_tokens=310), "expected last token"),
        (with_header(num_tokens=3_000_000), "bytes, found 32768"),
        (with_header(num_sequences=1), "expected last token"),
        (with_header(num_sequences=0), "at least one sequence"),
        (with_header(num_tokens=-5), "at least one sequence"),
        (with_header(num_tokens=None), "found no header"),
    ],
)
def test_damaged_files_are_named(shard: Path, edit: Callable[[bytes], bytes], message: str) -> None:
    path = shard / arrays.SPANS_FILE
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(arrays.SpanIndexError, match=message):
        arrays.open_span_arrays(shard)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        arrays.open_span_arrays(tmp_path)


def test_errors_are_value_errors() -> None:
    assert issubclass(arrays.SpanIndexError, ValueError)
