"""Attempts as a timeline and as a table, gaps, and what is said of a run's health."""

from typing import Any

from tests.support.shown_html import read_html
from ui.html.attempts import GAPS_SHOWN, attempts_html, gaps_html, health_html, timeline_html
from ui.html.places import Place
from ui.html.texts import say_in

SAY, PLACE = say_in("en"), Place("runs", {"run": "r"})


def attempt(number: int, first: int | None, last: int, **more: Any) -> dict[str, Any]:
    return {
        "attempt": number, "first_step": first, "last_step": last, "canonical": True, "canonical_last_step": None,
        "parent_attempt": None, "resume_step": 0, "started": "2026-11-30T22:17:04.5Z", "num_writers": 2,
        "export_format_version": 3, **more,
    }  # fmt: skip


def gap(number: int, step: int, reason: str | None = "disk full") -> dict[str, Any]:
    return {"attempt": number, "global_step": step, "dp_rank": 1, "num_rows": 4, "reason": reason}


ATTEMPTS = [
    attempt(1, 1, 20, canonical_last_step=12),
    attempt(2, 13, 18, canonical=False, parent_attempt=1, resume_step=12),
    attempt(3, 13, 30, parent_attempt=1, resume_step=12),
    attempt(4, None, 0, parent_attempt=3, resume_step=30),
]


def test_a_timeline_says_what_counts_and_what_was_rolled_back() -> None:
    shown = read_html(timeline_html(PLACE, SAY, ATTEMPTS, [gap(3, 25), gap(9, 1), gap(1, 2, None)]))
    assert list(shown.links) == [
        "attempt 1, steps 1–12: it counts", "attempt 1, steps 13–20: rolled back", "attempt 2, steps 13–18: rolled back",
        "attempt 3, steps 13–30: it counts", "gap in step 25, rank 1: disk full", "gap in step 2, rank 1: ",
    ]  # fmt: skip
    assert shown.links["attempt 1, steps 13–20: rolled back"] == "steps?run=r&step=13&attempt=1&attempt_of=1"
    assert shown.links["attempt 3, steps 13–30: it counts"] == "steps?run=r&step=13&attempt=3"
    assert "No step of this run is indexed yet." in timeline_html(PLACE, SAY, ATTEMPTS[3:], [])


def test_attempts_as_a_table() -> None:
    rows = read_html(attempts_html(SAY, ATTEMPTS)).rows
    assert rows[1] == ["1", "2026-11-30 22:17:04", "–", "1–20", "1–12", "13–20", "2", "3"]
    assert rows[2][2:6] == ["step 12 of attempt 1", "13–18", "–", "13–18"]
    assert rows[4][2:6] == ["step 30 of attempt 3", "none indexed", "–", "–"]


def test_gaps_with_their_reasons() -> None:
    assert "None: the trainer recorded no gap." in gaps_html(PLACE, SAY, {"gaps": [], "num_gaps": 0})
    many = [gap(1, step, None if step == 1 else "<full>") for step in range(1, GAPS_SHOWN + 6)]
    shown = read_html(gaps_html(PLACE, SAY, {"gaps": many, "num_gaps": 2000}))
    assert shown.rows[1] == ["1", "1", "1", "4", ""] and shown.rows[2][-1] == "<full>"
    assert len(shown.rows) == GAPS_SHOWN + 1 and shown.text.endswith("and 1,900 more")
    assert "more" not in read_html(gaps_html(PLACE, SAY, {"gaps": many[:2], "num_gaps": 2})).text


def test_the_health_of_a_run() -> None:
    run = {
        "shorter_rows": False, "num_sequences": 10, "num_tokens": 80, "sequence_length": 8, "has_tokenizer": False,
        "generation": 2, "shards_total": 3, "shards_failed": 0,
    }  # fmt: skip
    whole = {"num_steps": 5, "num_missing": 0, "num_gaps": 0, "num_superseded": 0, "num_without_update": 0}
    shown = read_html(health_html(SAY, run, whole))
    facts = dict(zip(shown.texts("dt"), shown.texts("dd"), strict=True))
    assert facts["tokens a sequence"] == "8" and facts["tokenizer"] == "no" and facts["shards that answer"] == "3 / 3"
    assert shown.texts("div", role="status") == [
        "Complete: every step up to the last indexed one is here, and nothing was left out."
    ]
    shown = read_html(health_html(SAY, {**run, "shorter_rows": True, "has_tokenizer": True}, {**whole, "num_gaps": 1}))
    assert (
        "tokens a sequence, at most" in shown.text and "Something is missing" in shown.texts("div", class_="warning")[0]
    )
    shown = read_html(health_html(SAY, {**run, "shards_failed": 1}, whole))
    assert shown.texts("div", role="alert") == ["1 shards are damaged and are not asked: run `kiseki index --verify`."]
