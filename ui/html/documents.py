"""A document as HTML: what training saw of it in all, when, how much of it how often, and every exposure."""

from collections.abc import Mapping
from typing import Any

from ui.html.charts import Bar, bars
from ui.html.coverage import facts_html, failures_html
from ui.html.escape import attribute, one_line, text_html
from ui.html.places import Place
from ui.html.texts import Say

__all__ = ["document_html", "exposures_html"]

Json = Mapping[str, Any]
BINS = 40
WIDTH, HEIGHT, LEFT, RIGHT = 640, 44, 46, 8


def document_html(place: Place, say: Say, found: Json, steps: list[int], last_step: int) -> str:
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
        f'<h2 dir="auto">{text_html(name)}</h2>{failures_html(say, found)}{facts_html(facts)}'
        f'<p class="dim">{text_html(ranks)}</p><h3>{text_html(say("Exposures over steps"))}</h3>'
        f"{_over_steps(place, say, found, steps, last_step)}<h3>{text_html(say('Which of its tokens were seen'))}</h3>"
        f"{_coverage(say, found)}"
    )


def exposures_html(place: Place, say: Say, found: Json, shown_before: int) -> str:
    """A page of the exposures in order, with their text."""
    rows = []
    for number, exposure in enumerate(found["exposures"], shown_before + 1):
        start, length = exposure["start"], exposure["length"]
        href = place.to("sequence", address=exposure["address"], at=f"{start}-{start + length}")
        where = place.link(href, f"<code>{text_html(exposure['address'])}</code>")
        offset = exposure["document_token_offset"]
        facts = say(
            "step {step}, rank {rank}; tokens {first} to {last} of the document, {new} of them for the first time",
            step=f"{exposure['global_step']:,}", rank=exposure["dp_rank"], first=f"{offset:,}",
            last=f"{offset + length:,}", new=f"{exposure['num_new_tokens']:,}",
        )  # fmt: skip
        if not exposure["canonical"]:
            facts += " · " + say("superseded")
        text = exposure["text"]
        shown = "" if text is None else f'<div class="quote" dir="auto" tabindex="0">{text_html(text)}</div>'
        rows.append(f'<div class="hit">{number:,}. {where}<br><span class="dim">{text_html(facts)}</span>{shown}</div>')
    return f"<h3>{text_html(say('Every exposure, in the order of training'))}</h3>" + "".join(rows)


def _over_steps(place: Place, say: Say, found: Json, steps: list[int], last_step: int) -> str:
    width = max(1, -(-(last_step + 1) // BINS))
    counts: dict[int, int] = {}
    for step in steps:
        counts[step // width] = counts.get(step // width, 0) + 1
    data = [
        Bar(
            first, min(first + width, last_step + 1), counts.get(first // width, 0),
            say(
                "steps {first} to {last}: {n} exposures", first=f"{first:,}",
                last=f"{min(first + width, last_step + 1) - 1:,}", n=f"{counts.get(first // width, 0):,}",
            ),
        )
        for first in range(0, last_step + 1, width)
    ]  # fmt: skip
    label = say(
        "Exposures over steps, {n} of them, from step {first} to {last}",
        n=f"{len(steps):,}",
        first=0,
        last=f"{last_step:,}",
    )
    more = ""
    if len(steps) < found["num_exposures"]:
        words = say("The chart shows the first {n} exposures.", n=f"{len(steps):,}")
        more = f'<p class="dim">{text_html(words)}</p>'
    return bars(data, label=label, brush=place.here(first="{first}", last="{last}", cursor=None, n=None)) + more


def _coverage(say: Say, found: Json) -> str:
    """The document's tokens from left to right, those that were seen filled in; and how many how often."""
    end = max(1, found["end_token"])
    inner = WIDTH - LEFT - RIGHT
    drawn = "".join(
        f'<rect class="bar" x="{LEFT + inner * start / end:.1f}" y="4" width="{max(1.0, inner * (stop - start) / end):.1f}" '
        f'height="18"><title>{text_html(say("tokens {first} to {last}", first=f"{start:,}", last=f"{stop:,}"))}</title></rect>'
        for start, stop in found["ranges"]
    )
    share = f"{found['num_tokens_distinct'] / end:.0%}"
    label = say("{share} of the tokens up to the last one that was seen", share=share)
    times = "; ".join(
        say("{tokens} tokens {times} times", tokens=f"{tokens:,}", times=f"{times:,}")
        for times, tokens in found["times_seen"]
    )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{attribute(label)}">'
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="23" y2="23"/>{drawn}<text x="{LEFT}" y="38">0</text>'
        f'<text x="{WIDTH - RIGHT}" y="38" text-anchor="end">{end:,}</text></svg>'
        f'<p>{text_html(label)}. {text_html(times)}.</p><p class="dim">'
        + text_html(
            say("What lies behind the last token that was seen is not known: the record holds what was consumed.")
        )
        + "</p>"
    )
