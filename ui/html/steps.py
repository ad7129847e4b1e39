"""Steps as HTML: charts of the metrics with their spikes, the sources over steps, and two windows side by side."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ui.html.charts import Mark, Series, line_chart
from ui.html.escape import EMPTY, LINE_BREAK, Html, joined, tag
from ui.html.explanation import number, percent, spike_text
from ui.html.places import Place
from ui.html.search import quoted
from ui.html.tables import facts_html, table_html
from ui.html.texts import Say

__all__ = ["SourceMix", "Window", "charts_html", "mix_html", "parse_window", "spikes_html", "windows_html"]

Json = Mapping[str, Any]
METRICS = {"loss": "loss", "lr": "learning rate", "grad_norm": "gradient norm"}
LINKED_SPIKES, LISTED_SPIKES = 100, 30
COLOURS = 6
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM = 1180, 140, 46, 8, 20


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceMix:
    """Segments by source and step bin. edges: of the bins; counts: by source, one a bin; "" is every other source."""

    edges: Sequence[int]
    counts: Mapping[str, Sequence[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A range of steps, both ends included, with its steps and its segments by source."""

    first: int
    last: int
    steps: Sequence[Json]
    sources: Mapping[str, int]


def parse_window(text: str) -> tuple[int, int] | None:
    """The steps "100-200" of a URL, both included; None for anything else."""
    first, _, last = text.strip().replace("–", "-").partition("-")
    if not all(part.strip().isascii() and part.strip().isdigit() and len(part) < 16 for part in (first, last)):
        return None
    return (int(first), int(last)) if int(first) <= int(last) else None


def charts_html(place: Place, say: Say, answer: Json, chosen: int | None) -> Html:
    """A chart for each metric that the trainer gave, one below the other, over the same steps."""
    facts = [(say("steps"), f"{answer['num_steps']:,}"), (say("spikes"), f"{answer['num_spikes']:,}")]
    parts = [facts_html(facts)]
    if answer["truncated"]:
        drawn = say(
            "{n} of the steps are drawn: of each stretch the least, greatest and middle one of each metric, and every spike.",
            n=f"{len(answer['steps']):,}",
        )
        parts.append(tag("p", drawn, class_="dim"))
    charts = [_metric_chart(place, say, answer["steps"], metric, chosen) for metric in METRICS]
    parts.append(joined(charts) or tag("p", say("The trainer recorded no loss, learning rate or gradient norm.")))
    how = say("Click a chart to see what is special about a step; drag over it to look at a range.")
    return joined([*parts, tag("p", how, class_="dim")])


def _metric_chart(place: Place, say: Say, steps: Sequence[Json], metric: str, chosen: int | None) -> Html:
    """The chart of a metric under its name; empty where no step has it."""
    known = [step for step in steps if step[metric] is not None]
    if not known:
        return EMPTY
    linked = {step["global_step"] for step in _by_strength(steps)[:LINKED_SPIKES]}
    marks = [
        Mark(
            step["global_step"], _finite(step[metric]),
            say("step {step}: {what}", step=f"{step['global_step']:,}", what=spike_text(say, spike)),
            _href(place, step) if step["global_step"] in linked else "", step["global_step"] == chosen,
        )
        for step in steps for spike in step["spikes"] if spike["metric"] == metric
    ]  # fmt: skip
    values, name = [step[metric] for step in known], say(METRICS[metric])
    label = say(
        "{metric} over steps, from {first} to {last}; between {low} and {high}; {n} spikes", metric=name,
        first=f"{known[0]['global_step']:,}", last=f"{known[-1]['global_step']:,}", low=number(min(values)),
        high=number(max(values)), n=len(marks),
    )  # fmt: skip
    chart = line_chart(
        Series([step["global_step"] for step in known], values), label=label, marks=marks, chosen=chosen,
        pick=place.here(step="{step}", attempt_of=None), brush=place.here(first="{first}", last="{last}"),
        height=90 if metric == "lr" else 150,
    )  # fmt: skip
    return tag("section", tag("h3", name), chart, data_metric=metric)


def spikes_html(place: Place, say: Say, answer: Json) -> Html:
    """The spikes, the strongest first."""
    spikes = _by_strength(answer["steps"])
    title = tag("h2", say("Spikes, the strongest first"))
    if not spikes:
        words = say(
            "No step of this range has a loss or gradient norm far above those before it. Click a chart to look at any step."
        )
        return title + tag("p", words)
    items = []
    for step in spikes[:LISTED_SPIKES]:
        link = place.link(_href(place, step), say("step {n}", n=f"{step['global_step']:,}"))
        superseded = "" if step["canonical"] else f" ({say('superseded')})"
        why = "; ".join(spike_text(say, spike) for spike in step["spikes"])
        items.append(tag("li", link, superseded, LINE_BREAK, tag("span", why, class_="dim")))
    left = answer["num_spikes"] - len(items)
    more = tag("p", say("and {n} more", n=f"{left:,}")) if left > 0 else EMPTY
    return title + tag("ol", *items, class_="spans") + more


def mix_html(place: Place, say: Say, mix: SourceMix, last_step: int) -> Html:
    """Shares of the sources over steps, as stacked bars and in a table."""
    first, after = mix.edges[0], max(mix.edges[-1], mix.edges[0] + 1)
    totals = [sum(counts[bin_] for counts in mix.counts.values()) for bin_ in range(len(mix.edges) - 1)]
    drawn = [_stacked_bar(say, mix, bin_, total, last_step) for bin_, total in enumerate(totals)]
    everything = max(1, sum(totals))
    rows = [
        [
            tag("span", class_=f"chip m{_colour(at, source)}") + _source_link(place, say, source), f"{sum(counts):,}",
            percent(sum(counts) / everything),
        ]
        for at, (source, counts) in enumerate(mix.counts.items())
    ]  # fmt: skip
    label = say(
        "Share of the sources in the segments, over steps {first} to {last}", first=f"{first:,}", last=f"{last_step:,}"
    )
    axis = (
        tag("text", "100%", x=LEFT - 5, y=10, text_anchor="end")
        + tag("text", "0", x=LEFT - 5, y=HEIGHT - BOTTOM, text_anchor="end")
        + tag("text", f"{first:,}", x=LEFT, y=HEIGHT - 5)
        + tag("text", f"{last_step:,}", x=WIDTH - RIGHT, y=HEIGHT - 5, text_anchor="end")
    )
    chart = tag(
        "svg", axis, *drawn, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label, data_left=LEFT,
        data_right=RIGHT, data_brush=place.here(first="{first}", last="{last}"), data_first=first, data_after=after,
    )  # fmt: skip
    table = table_html([say("source"), say("segments"), say("share")], rows)
    return tag("h2", say("Sources over steps")) + chart + table


def _stacked_bar(say: Say, mix: SourceMix, bin_: int, total: int, last_step: int) -> Html:
    """The shares of the sources in one bin of steps, one above the other."""
    first, after = mix.edges[0], max(mix.edges[-1], mix.edges[0] + 1)
    x0, x1 = (LEFT + (WIDTH - LEFT - RIGHT) * (edge - first) / (after - first) for edge in mix.edges[bin_ : bin_ + 2])
    y, shapes = float(HEIGHT - BOTTOM), []
    for at, (source, counts) in enumerate(mix.counts.items()):
        if not counts[bin_]:
            continue
        tall = (HEIGHT - BOTTOM) * counts[bin_] / total
        y -= tall
        title = say(
            "steps {first} to {last}: {source}, {n} segments, {share}", first=f"{mix.edges[bin_]:,}",
            last=f"{min(mix.edges[bin_ + 1] - 1, last_step):,}", source=source or say("other sources"),
            n=f"{counts[bin_]:,}", share=percent(counts[bin_] / total),
        )  # fmt: skip
        shapes.append(
            tag(
                "rect", tag("title", title), class_=f"m{_colour(at, source)}", x=f"{x0 + 0.5:.1f}",
                width=f"{max(1.0, x1 - x0 - 1):.1f}", y=f"{y:.1f}", height=f"{tall:.2f}",
            )
        )  # fmt: skip
    return joined(shapes)


def windows_html(say: Say, left: Window, right: Window) -> Html:
    """Means and sources of two windows side by side."""
    windows = (left, right)
    heads = [
        "", *(say("steps {first} to {last}", first=f"{window.first:,}", last=f"{window.last:,}") for window in windows),
        say("change"),
    ]  # fmt: skip
    num_spikes = [sum(bool(step["spikes"]) for step in window.steps) for window in windows]
    rows = [
        [say("steps"), *(f"{len(window.steps):,}" for window in windows), ""],
        [say("spikes"), *(f"{number_of:,}" for number_of in num_spikes), ""],
    ]
    for metric, name in METRICS.items():
        medians = [_median(window.steps, metric) for window in windows]
        if any(value is not None for value in medians):
            median = say("median of the {metric}", metric=say(name))
            rows.append([median, *map(number, medians), _change(medians)])
    tokens = [sum(step["num_tokens"] for step in window.steps) for window in windows]
    rows.append([say("tokens"), *(f"{value:,}" for value in tokens), ""])
    totals = [max(1, sum(window.sources.values())) for window in windows]
    shares = {
        name: [window.sources.get(name, 0) / total for window, total in zip(windows, totals, strict=True)]
        for name in [*left.sources, *right.sources]
    }
    for name in sorted(shares, key=lambda name: -abs(shares[name][1] - shares[name][0])):
        before, after = shares[name]
        what = say("segments of {source}", source=name or say("no known source"))
        rows.append([what, percent(before), percent(after), f"{100 * (after - before):+.1f}"])
    return table_html(heads, rows)


def _by_strength(steps: Sequence[Json]) -> list[Json]:
    spikes = [step for step in steps if step["spikes"]]
    return sorted(spikes, key=lambda step: -max(float(spike["deviations"]) for spike in step["spikes"]))


def _href(place: Place, step: Json) -> str:
    """To what is special about a step; of a superseded one, its attempt stands there too."""
    return place.here(step=step["global_step"], attempt_of=None if step["canonical"] else step["attempt"])


def _finite(value: float | None) -> float:
    return math.nan if value is None else value


def _colour(at: int, source: str) -> int:
    return at % COLOURS if source else COLOURS


def _source_link(place: Place, say: Say, source: str) -> str:
    if not source:
        return say("other sources")
    return place.link(place.to("search", q=f"source:{quoted(source)}"), source)


def _median(steps: Sequence[Json], metric: str) -> float | None:
    values = [step[metric] for step in steps if step[metric] is not None]
    return statistics.median(values) if values else None


def _change(values: Sequence[float | None]) -> str:
    before, after = values
    return "" if before is None or after is None or not before else f"{(after - before) / abs(before):+.1%}"
