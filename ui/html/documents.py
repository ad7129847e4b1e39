"""A document as HTML: what training saw of it in all, when, how much of it how often, and every exposure."""

from collections.abc import Mapping
from typing import Any

from ui.html.charts import Bar, bar_chart
from ui.html.escape import EMPTY, LINE_BREAK, Html, joined, one_line, tag
from ui.html.messages import failures_html
from ui.html.places import Place
from ui.html.tables import facts_html
from ui.html.texts import Say

__all__ = ["document_html", "exposures_html"]

Json = Mapping[str, Any]
BINS = 40
WIDTH, HEIGHT, LEFT, RIGHT = 640, 44, 46, 8


def document_html(place: Place, say: Say, found: Json, steps: list[int], last_step: int) -> Html:
    """Facts, exposures over steps (`steps` of those that are listed), and the tokens that were seen."""
    name = one_line(f"{found['source']} / {found['document_id']}", 200)
    facts = [
        (say("exposures"), f"{found['num_exposures']:,}"), (say("steps"), f"{found['num_steps']:,}"),
        (say("first step"), f"{found['first_step']:,}"), (say("last step"), f"{found['last_step']:,}"),
        (say("tokens seen, repeats too"), f"{found['num_tokens_seen']:,}"),
        (say("different tokens"), f"{found['num_tokens_distinct']:,} / {found['end_token']:,}"),
    ]  # fmt: skip
    ranks = say("data-parallel ranks: {ranks}", ranks=", ".join(map(str, found["dp_ranks"])))
    return (
        tag("h2", name, dir="auto")
        + failures_html(say, found)
        + facts_html(facts)
        + tag("p", ranks, class_="dim")
        + tag("h3", say("Exposures over steps"))
        + _exposures_over_steps(place, say, found, steps, last_step)
        + tag("h3", say("Which of its tokens were seen"))
        + _tokens_seen(say, found)
    )


def exposures_html(place: Place, say: Say, found: Json, shown_before: int) -> Html:
    """A page of the exposures in order, with their text."""
    rows = [tag("h3", say("Every exposure, in the order of training"))]
    for number, exposure in enumerate(found["exposures"], shown_before + 1):
        start, length = exposure["start"], exposure["length"]
        href = place.to("sequence", address=exposure["address"], at=f"{start}-{start + length}")
        offset = exposure["document_token_offset"]
        facts = say(
            "step {step}, rank {rank}; tokens {first} to {last} of the document, {new} of them for the first time",
            step=f"{exposure['global_step']:,}", rank=exposure["dp_rank"], first=f"{offset:,}",
            last=f"{offset + length:,}", new=f"{exposure['num_new_tokens']:,}",
        )  # fmt: skip
        if not exposure["canonical"]:
            facts += " · " + say("superseded")
        text = exposure["text"]
        shown = EMPTY if text is None else tag("div", text, class_="quote", dir="auto", tabindex=0)
        where = place.link(href, tag("code", exposure["address"]))
        about = tag("span", facts, class_="dim")
        rows.append(tag("div", f"{number:,}. ", where, LINE_BREAK, about, shown, class_="hit"))
    return joined(rows)


def _exposures_over_steps(place: Place, say: Say, found: Json, steps: list[int], last_step: int) -> Html:
    width = max(1, -(-(last_step + 1) // BINS))
    counts: dict[int, int] = {}
    for step in steps:
        counts[step // width] = counts.get(step // width, 0) + 1
    data = []
    for first in range(0, last_step + 1, width):
        after, count = min(first + width, last_step + 1), counts.get(first // width, 0)
        words = say("steps {first} to {last}: {n} exposures", first=f"{first:,}", last=f"{after - 1:,}", n=f"{count:,}")
        data.append(Bar(first, after, count, words))
    label = say(
        "Exposures over steps, {n} of them, from step {first} to {last}",
        n=f"{len(steps):,}",
        first=0,
        last=f"{last_step:,}",
    )
    more = EMPTY
    if len(steps) < found["num_exposures"]:
        more = tag("p", say("The chart shows the first {n} exposures.", n=f"{len(steps):,}"), class_="dim")
    return bar_chart(data, label=label, brush=place.here(first="{first}", last="{last}", cursor=None, n=None)) + more


def _tokens_seen(say: Say, found: Json) -> Html:
    """The document's tokens from left to right, those that were seen filled in; and how many how often."""
    end = max(1, found["end_token"])
    inner = WIDTH - LEFT - RIGHT
    drawn = joined(
        tag(
            "rect", tag("title", say("tokens {first} to {last}", first=f"{start:,}", last=f"{stop:,}")), class_="bar",
            x=f"{LEFT + inner * start / end:.1f}", y=4, width=f"{max(1.0, inner * (stop - start) / end):.1f}", height=18,
        )
        for start, stop in found["ranges"]
    )  # fmt: skip
    share = f"{found['num_tokens_distinct'] / end:.0%}"
    label = say("{share} of the tokens up to the last one that was seen", share=share)
    times = "; ".join(
        say("{tokens} tokens {times} times", tokens=f"{tokens:,}", times=f"{times:,}")
        for times, tokens in found["times_seen"]
    )
    axis = (
        tag("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=23, y2=23)
        + drawn
        + tag("text", "0", x=LEFT, y=38)
        + tag("text", f"{end:,}", x=WIDTH - RIGHT, y=38, text_anchor="end")
    )
    unknown = say("What lies behind the last token that was seen is not known: the record holds what was consumed.")
    return (
        tag("svg", axis, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)
        + tag("p", f"{label}. {times}.")
        + tag("p", unknown, class_="dim")
    )
