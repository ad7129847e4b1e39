"""Cursors come back as they went out, and nothing else is taken for one."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.answers.cursor import CursorError, decode_cursor, encode_cursor, fingerprint

VALUES = st.lists(st.integers(0, 2**63 - 1) | st.text(st.characters(exclude_categories=())), max_size=6).map(tuple)


@given(VALUES, st.integers(1, 99))
def test_they_come_back(values: tuple[int | str, ...], version: int) -> None:
    text = encode_cursor("list", version, values)
    assert text.isascii() and text.startswith(f"list-v{version}.")
    assert decode_cursor(text, "list", version) == values
    assert decode_cursor(text, "list", version, [(float,), [type(value) for value in values]]) == values


def written(document: object) -> str:
    return "list-v1." + base64.urlsafe_b64encode(json.dumps(document).encode()).decode()


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "list", "list-v1", "list-v1.",
        "list-v1.!", "list-v1.ä", "list-v2.WzFd", "other-v1.WzFd", "1.ab.3", "list-v1.\ud800",
        written({"a": 1}), written([1.5]), written([None]), written([True]), written([[1]]), written([-1]), written([2**63]),
        written(["x"]), written([1, 2]), written(1), "list-v1." + "A" * 9000,
    ],
)  # fmt: skip
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(CursorError, match="cursor: expected one that an answer of this version gave"):
        decode_cursor(text, "list", 1, [(int,)])
    assert decode_cursor(written([1]), "list", 1, [(int,)]) == (1,)


def test_fingerprints_differ_with_the_question() -> None:
    assert fingerprint("a", 1) == fingerprint("a", 1) != fingerprint("a", 2)
    assert fingerprint("\ud800") != fingerprint("\udc00")
