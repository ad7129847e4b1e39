"""Steps as HTML: charts of the metrics with their spikes, the sources over steps, and two windows side by side."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ui.html.charts import Mark, Series, lines
from ui.html.coverage import facts_html
from ui.html.escape import attribute, text_html
from ui.html.explanation import number, percent, spike_text, table_html
from ui.html.places import Place
from ui.html.search import quoted
from ui.html.texts import Say

__all__ = ["Mix", "Window", "charts_html", "mix_html", "parse_window", "spikes_html", "windows_html"]

Json = Mapping[str, Any]
METRICS = {"loss": "loss", "lr": "learning rate", "grad_norm": "gradient norm"}
LINKED_SPIKES, LISTED_SPIKES = 100, 30
COLOURS = 6
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM = 1180, 140, 46, 8, 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
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


def charts_html(place: Place, say: Say, answer: Json, chosen: int | None) -> str:
    """A chart for each metric that the trainer gave, one below the other, over the same steps."""
    steps, spikes = answer["steps"], _by_strength(answer["steps"])
    linked = {step["global_step"] for step in spikes[:LINKED_SPIKES]}
    facts = [(say("steps"), f"{answer['num_steps']:,}"), (say("spikes"), f"{answer['num_spikes']:,}")]
    parts = [facts_html(facts)]
    if answer["truncated"]:
        drawn = say(
            "{n} of the steps are drawn: of each stretch the least, greatest and middle one of each metric, and every spike.",
            n=f"{len(steps):,}",
        )
        parts.append(f'<p class="dim">{text_html(drawn)}</p>')
    for metric, name in METRICS.items():
        known = [step for step in steps if step[metric] is not None]
        if not known:
            continue
        marks = [
            Mark(
                step["global_step"], _finite(step[metric]),
                say("step {step}: {what}", step=f"{step['global_step']:,}", what=spike_text(say, spike)),
                _href(place, step) if step["global_step"] in linked else "", step["global_step"] == chosen,
            )
            for step in steps for spike in step["spikes"] if spike["metric"] == metric
        ]  # fmt: skip
        values = [step[metric] for step in known]
        label = say(
            "{metric} over steps, from {first} to {last}; between {low} and {high}; {n} spikes", metric=say(name),
            first=f"{known[0]['global_step']:,}", last=f"{known[-1]['global_step']:,}", low=number(min(values)),
            high=number(max(values)), n=len(marks),
        )  # fmt: skip
        drawn_line = lines(
            Series([step["global_step"] for step in known], values), label=label, marks=marks, chosen=chosen,
            pick=place.here(step="{step}", attempt_of=None), brush=place.here(first="{first}", last="{last}"),
            height=90 if metric == "lr" else 150,
        )  # fmt: skip
        parts.append(f'<section data-metric="{metric}"><h3>{text_html(say(name))}</h3>{drawn_line}</section>')
    if len(parts) == 1 + bool(answer["truncated"]):
        parts.append(f"<p>{text_html(say('The trainer recorded no loss, learning rate or gradient norm.'))}</p>")
    how = say("Click a chart to see what is special about a step; drag over it to look at a range.")
    return "".join(parts) + f'<p class="dim">{text_html(how)}</p>'


def spikes_html(place: Place, say: Say, answer: Json) -> str:
    """The spikes, the strongest first."""
    spikes = _by_strength(answer["steps"])
    title = f"<h2>{text_html(say('Spikes, the strongest first'))}</h2>"
    if not spikes:
        words = say(
            "No step of this range has a loss or gradient norm far above those before it. Click a chart to look at any step."
        )
        return title + f"<p>{text_html(words)}</p>"
    items = []
    for step in spikes[:LISTED_SPIKES]:
        link = place.link(_href(place, step), text_html(say("step {n}", n=f"{step['global_step']:,}")))
        superseded = "" if step["canonical"] else f" ({say('superseded')})"
        why = "; ".join(spike_text(say, spike) for spike in step["spikes"])
        items.append(f'<li>{link}{text_html(superseded)}<br><span class="dim">{text_html(why)}</span></li>')
    left = answer["num_spikes"] - len(items)
    more = f"<p>{text_html(say('and {n} more', n=f'{left:,}'))}</p>" if left > 0 else ""
    return title + f'<ol class="spans">{"".join(items)}</ol>' + more


def mix_html(place: Place, say: Say, mix: Mix, last_step: int) -> str:
    """Shares of the sources over steps, as stacked bars and in a table."""
    first, after = mix.edges[0], max(mix.edges[-1], mix.edges[0] + 1)
    totals = [sum(counts[bin_] for counts in mix.counts.values()) for bin_ in range(len(mix.edges) - 1)]
    ground = HEIGHT - BOTTOM
    drawn = []
    for bin_, total in enumerate(totals):
        x0, x1 = (
            LEFT + (WIDTH - LEFT - RIGHT) * (edge - first) / (after - first) for edge in mix.edges[bin_ : bin_ + 2]
        )
        y = float(ground)
        for at, (source, counts) in enumerate(mix.counts.items()):
            tall = ground * counts[bin_] / total if total else 0
            y -= tall
            if not tall:
                continue
            title = say(
                "steps {first} to {last}: {source}, {n} segments, {share}", first=f"{mix.edges[bin_]:,}",
                last=f"{min(mix.edges[bin_ + 1] - 1, last_step):,}", source=source or say("other sources"),
                n=f"{counts[bin_]:,}", share=percent(counts[bin_] / total),
            )  # fmt: skip
            drawn.append(
                f'<rect class="m{_colour(at, source)}" x="{x0 + 0.5:.1f}" width="{max(1.0, x1 - x0 - 1):.1f}" y="{y:.1f}" '
                f'height="{tall:.2f}"><title>{text_html(title)}</title></rect>'
            )
    everything = max(1, sum(totals))
    rows = [
        [
            f'<span class="chip m{_colour(at, source)}"></span>' + _source_link(place, say, source), f"{sum(counts):,}",
            percent(sum(counts) / everything),
        ]
        for at, (source, counts) in enumerate(mix.counts.items())
    ]  # fmt: skip
    label = say(
        "Share of the sources in the segments, over steps {first} to {last}", first=f"{first:,}", last=f"{last_step:,}"
    )
    axis = (
        f'<text x="{LEFT - 5}" y="10" text-anchor="end">100%</text><text x="{LEFT - 5}" y="{ground}" text-anchor="end">0</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 5}">{first:,}</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{last_step:,}</text>'
    )
    brush = attribute(place.here(first="{first}", last="{last}"))
    return (
        f"<h2>{text_html(say('Sources over steps'))}</h2>"
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{attribute(label)}" data-left="{LEFT}" '
        f'data-right="{RIGHT}" data-brush="{brush}" data-first="{first}" data-after="{after}">{axis}{"".join(drawn)}</svg>'
        + table_html([say("source"), say("segments"), say("share")], rows)
    )


def windows_html(say: Say, left: Window, right: Window) -> str:
    """Means and sources of two windows side by side."""
    heads = [
        "",
        *(say("steps {first} to {last}", first=f"{w.first:,}", last=f"{w.last:,}") for w in (left, right)),
        say("change"),
    ]
    rows = [[text_html(say("steps")), *(f"{len(w.steps):,}" for w in (left, right)), ""]]
    rows.append(
        [text_html(say("spikes")), *(f"{sum(bool(step['spikes']) for step in w.steps):,}" for w in (left, right)), ""]
    )
    for metric, name in METRICS.items():
        medians = [_median(w.steps, metric) for w in (left, right)]
        if any(value is not None for value in medians):
            rows.append(
                [text_html(say("median of the {metric}", metric=say(name))), *map(number, medians), _change(medians)]
            )
    tokens = [sum(step["num_tokens"] for step in w.steps) for w in (left, right)]
    rows.append([text_html(say("tokens")), *(f"{value:,}" for value in tokens), ""])
    totals = [max(1, sum(w.sources.values())) for w in (left, right)]
    names = dict.fromkeys([*left.sources, *right.sources])
    shares = {
        name: [w.sources.get(name, 0) / total for w, total in zip((left, right), totals, strict=True)] for name in names
    }
    for name in sorted(names, key=lambda name: -abs(shares[name][1] - shares[name][0])):
        a, b = shares[name]
        what = text_html(say("segments of {source}", source=name or say("no known source")))
        rows.append([what, percent(a), percent(b), f"{100 * (b - a):+.1f}"])
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
        return text_html(say("other sources"))
    return place.link(place.to("search", q=f"source:{quoted(source)}"), text_html(source))


def _median(steps: Sequence[Json], metric: str) -> float | None:
    values = [step[metric] for step in steps if step[metric] is not None]
    return statistics.median(values) if values else None


def _change(values: Sequence[float | None]) -> str:
    before, after = values
    return "" if before is None or after is None or not before else f"{(after - before) / abs(before):+.1%}"
