"""A packed sequence as text and as tokens: hidden parts, masks, marks, and what is said of it in words."""

from typing import Any

import pytest

from tests.support.shown_html import read_html
from ui.html.evidence import evidence_words, matched_words
from ui.html.places import Place
from ui.html.sequence import (
    SequenceView,
    replay_snippet,
    sequence_facts_html,
    sequence_html,
)  # fmt: skip
from ui.html.texts import say_in

SAY, PLACE = say_in("en"), Place("sequence", {"run": "r"})


def segment(start: int, length: int, **more: Any) -> dict[str, Any]:
    return {"start": start, "length": length, "source": "web", "document_id": "d", "document_token_offset": 7, **more}


SEQUENCE: dict[str, Any] = {
    "address": "r/a2/s1203/r3/m1/q5", "status": "applied", "evidence": "forward", "matched": "slice", "relation": "narrowed",
    "segments": [
        segment(0, 3), segment(4, 2, source=None, document_id=None), segment(6, 2, document_id=""),
    ],
    "token_ids": [11, 12, 13, 14, None, None, 15, 16], "token_texts": ["a", "<b>", "\n", "", None, None, "c", "d"],
    "loss": 2.5, "sample_index": 1234, "loss_mask": [True, False, True, True, None, None, True, False],
    "loss_mask_of": "labels", "leaf": "ab" * 32, "before": None, "after": "r/a2/s1203/r3/m1/q6",
}  # fmt: skip


def test_text_with_hidden_parts_and_what_the_mask_leaves_out() -> None:
    shown = read_html(sequence_html(PLACE, SAY, SEQUENCE, SequenceView(marked=(1, 3))))
    assert shown.texts("span", class_="head") == [
        "web / d · tokens 0–2 · from token 7 of the document", "of no known document · tokens 3–3", "hidden · tokens 4–5",
        "web /  · tokens 6–7 · from token 7 of the document",
    ]  # fmt: skip
    assert len(shown.named("div", class_="hidden")) == 1 and "2 tokens hidden" in shown.text
    assert shown.texts("mark") == ["<b>", "\n"] and shown.texts("del") == ["<b>", "d"]
    assert list(shown.links) == ["web / d"]


def test_token_by_token() -> None:
    shown = read_html(sequence_html(PLACE, SAY, SEQUENCE, SequenceView(as_tokens=True, marked=(1, 3))))
    assert shown.texts("span", class_="tok") == ["a", "<b>", "⏎\n", "⋯", "█", "█", "c", "d"]
    assert shown.texts("span", class_="on") == ["<b>", "⏎\n"] and shown.texts("span", class_="out") == ["<b>", "d"]
    assert "token 1, id 12" in shown.tooltips()
    ids = read_html(sequence_html(PLACE, SAY, {**SEQUENCE, "token_texts": None, "loss_mask": None}, SequenceView()))
    assert ids.texts("span", class_="tok")[:4] == ["11", "12", "13", "14"]


def test_facts() -> None:
    shown = read_html(sequence_facts_html(PLACE, SAY, SEQUENCE))
    facts = dict(zip(shown.texts("dt"), shown.texts("dd"), strict=True))
    assert facts["loss of the sequence"] == "2.5000" and facts["position in the data order"] == "1,234"
    assert facts["loss mask"] == "4 of 8 labels count (from the recorded labels); the others are struck out below"
    assert facts["matched"] == "slice: the forward got a part of the tokens (narrowed)"
    assert "nothing before it in this attempt" in shown.text and "step 1,203" in shown.links
    less = {
        **SEQUENCE,
        "loss": None,
        "sample_index": None,
        "loss_mask": [True] * 8,
        "before": "r/a2/s1/r3/m1/q5",
        "after": None,
    }
    shown = read_html(sequence_facts_html(PLACE, SAY, less))
    assert "all 8 labels count (from the recorded labels)" in shown.text and "loss of the sequence" not in shown.text
    assert "nothing after it in this attempt" in shown.text
    assert "loss mask" not in read_html(sequence_facts_html(PLACE, SAY, {**SEQUENCE, "loss_mask": None})).text


@pytest.mark.parametrize("status", ["applied", "skipped_update", "skipped_data", "rerun", "of a later version"])
def test_each_status_has_words(status: str) -> None:
    shown = read_html(sequence_facts_html(PLACE, SAY, {**SEQUENCE, "status": status}))
    words = dict(zip(shown.texts("dt"), shown.texts("dd"), strict=True))["status"]
    assert words == status if status == "of a later version" else words != status


def test_words_for_evidence_and_matches() -> None:
    assert evidence_words(SAY, None) == matched_words(SAY, None, None) == "not recorded"
    assert evidence_words(SAY, "loader") == "loader: the tokens are what the data loader yielded"
    assert evidence_words(SAY, "new") == matched_words(SAY, "new", None) == "new"


def test_the_snippet_names_the_row() -> None:
    compile(replay_snippet(SEQUENCE["address"]), "snippet", "exec")
    assert "attempt=2, dp_rank=3, first_step=1203" in replay_snippet(SEQUENCE["address"])
