"""The head of a trace: how much of the text was found, what the colours mean, and what a trace is not."""

from collections.abc import Mapping, Sequence
from typing import Any

from ui.html.escape import text_html
from ui.html.texts import Say

__all__ = ["facts_html", "failures_html", "legend_html", "trace_head"]

Json = Mapping[str, Any]


def facts_html(facts: Sequence[tuple[str, str]]) -> str:
    """Numbers with their names, in a row. Both are escaped here."""
    items = "".join(f"<div><dt>{text_html(name)}</dt><dd>{text_html(value)}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{items}</dl>'


def failures_html(say: Say, answer: Json) -> str:
    """A warning where a part of the index did not answer."""
    if not answer["shards_failed"]:
        return ""
    text = say(
        "{n} of {all} shards did not answer, so counts may be too small: {why}", n=answer["shards_failed"],
        all=answer["shards_total"], why="; ".join(answer["failures"]),
    )  # fmt: skip
    return f'<div class="msg warning" role="status">{text_html(text)}</div>'


def legend_html(say: Say) -> str:
    """What the colours mean."""
    words = (
        ("r0", say("rarest third")), ("r1", say("middle third")), ("r2", say("most common third")),
        ("r3", say("more common, not listed")),
    )  # fmt: skip
    marks = "".join(f'<span class="m {name}">{text_html(text)}</span>' for name, text in words)
    overlap = say("a double line below: several spans overlap")
    return f'<div class="legend">{marks}<span>{text_html(overlap)}</span></div>'


def trace_head(say: Say, found: Json, checkpoint: int) -> str:
    """Coverage in numbers."""
    covered, total, spans = found["num_tokens_covered"], found["num_tokens"], found["spans"]
    longest = max((span["num_tokens"] for span in spans), default=0)
    facts = [
        (say("tokens that were trained on"), f"{covered:,} / {total:,} ({covered / total if total else 0:.0%})"),
        (say("spans"), f"{len(spans):,}"),
        (say("longest span"), say("{n} tokens", n=f"{longest:,}")),
        (say("documents"), f"{len(found['documents']):,}"),
        (say("as of model checkpoint"), f"{checkpoint:,}"),
        (say("took"), f"{found['took_ms']:,.0f} ms"),
    ]
    note = (
        say("A list was cut: there are more spans, places or documents than are shown.") if found["truncated"] else ""
    )
    return (
        failures_html(say, found)
        + facts_html(facts)
        + (f'<p class="dim">{text_html(note)}</p>' if note else "")
        + legend_html(say)
    )
