"""The head of a trace: how much of the text was found, and what the colours mean."""

from collections.abc import Mapping
from typing import Any

from ui.html.escape import EMPTY, Html, joined, tag
from ui.html.messages import failures_html
from ui.html.tables import facts_html
from ui.html.texts import Say

__all__ = ["legend_html", "trace_head_html"]

Json = Mapping[str, Any]


def legend_html(say: Say) -> Html:
    """What the colours mean."""
    words = (
        ("r0", say("rarest third")), ("r1", say("middle third")), ("r2", say("most common third")),
        ("r3", say("more common, not listed")),
    )  # fmt: skip
    marks = joined(tag("span", text, class_=f"m {name}") for name, text in words)
    return tag("div", marks, tag("span", say("a double line below: several spans overlap")), class_="legend")


def trace_head_html(say: Say, found: Json, checkpoint: int) -> Html:
    """How much of the text was found, in numbers."""
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
    note = EMPTY
    if found["truncated"]:
        cut = say("A list was cut: there are more spans, places or documents than are shown.")
        note = tag("p", cut, class_="dim")
    return failures_html(say, found) + facts_html(facts) + note + legend_html(say)
