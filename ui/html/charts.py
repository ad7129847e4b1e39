"""Small charts as SVG: bars over steps and lines over steps. Colours come from the page's style sheet, so both themes work.

Bars and marked points are links. Each chart has a text that says the same for who does not see it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ui.html.escape import attribute, text_html

__all__ = ["Bar", "Mark", "Series", "bars", "lines"]

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 640, 46, 8, 8, 20
MANY_MARKS = 60


@dataclass(frozen=True, slots=True)
class Bar:
    """Steps [first, after) with a count; href: where a click leads, "" for nowhere. dim: drawn pale."""

    first: int
    after: int
    count: int
    label: str
    href: str = ""
    dim: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """Values over steps, both ascending in step; values that are not finite break the line."""

    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A point to look at, such as a spike; href: where a click leads, "" for nowhere."""

    step: int
    value: float
    label: str
    href: str
    chosen: bool = False


def bars(data: Sequence[Bar], *, label: str, checkpoint: int | None = None, height: int = 110, brush: str = "") -> str:
    """Bars over steps; a line stands after the step of the model checkpoint. brush: a link with {first} and {last}."""
    if not data:
        return ""
    first, after = data[0].first, max(data[-1].after, data[0].first + 1)
    most = max(1, *(bar.count for bar in data))
    drawn = []
    for bar in data:
        x0, x1 = (_x(step, first, after) for step in (bar.first, bar.after))
        tall = (height - TOP - BOTTOM) * bar.count / most
        tall = max(tall, 2.0) if bar.count else 0.0
        shape = (
            f'<rect class="bar{" dim" if bar.dim else ""}" x="{x0 + 0.5:.1f}" y="{height - BOTTOM - tall:.1f}" '
            f'width="{max(1.0, x1 - x0 - 1):.1f}" height="{tall:.1f}"><title>{text_html(bar.label)}</title></rect>'
        )
        if bar.href and bar.count:
            shape = f'<a data-go href="{attribute(bar.href)}" aria-label="{attribute(bar.label)}">{shape}</a>'
        drawn.append(shape)
    if checkpoint is not None:
        x = _x(min(checkpoint + 1, after), first, after)
        drawn.append(f'<line class="checkpoint" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - BOTTOM}"/>')
    axis = _axes(first, after - 1, 0, most, height, integer=True)
    brushed = f' data-brush="{attribute(brush)}" data-first="{first}" data-after="{after}"' if brush else ""
    return _svg(axis + "".join(drawn), height, label, brushed, interactive=any(bar.href for bar in data))


def lines(
    series: Series, *, label: str, marks: Sequence[Mark] = (), height: int = 150, pick: str = "", brush: str = "",
    chosen: int | None = None, log: bool = False,
) -> str:  # fmt: skip
    """A line over steps, with marks. pick: a link with {step}, which a click anywhere leads to. log: log scale.

    brush: a link with {first} and {last}. chosen: a step with a line of its own.
    """
    points = [
        (step, math.log10(value) if log else value)
        for step, value in zip(series.steps, series.values, strict=True)
        if math.isfinite(value) and (value > 0 or not log)
    ]
    if not points:
        return ""
    first, last = series.steps[0], max(series.steps[-1], series.steps[0] + 1)
    low, high = min(value for _, value in points), max(value for _, value in points)
    if low == high:
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
    path = " ".join(f"{_x(step, first, last):.1f},{_y(value, low, high, height):.1f}" for step, value in points)
    drawn = [f'<polyline class="line" points="{path}"/>']
    for mark in marks:
        value = math.log10(mark.value) if log and mark.value > 0 else mark.value
        y = _y(value, low, high, height) if math.isfinite(value) else TOP
        dot = (
            f'<circle class="mark{" chosen" if mark.chosen else ""}" cx="{_x(mark.step, first, last):.1f}" cy="{y:.1f}" '
            f'r="{5 if len(marks) <= MANY_MARKS else 3}"><title>{text_html(mark.label)}</title></circle>'
        )
        if mark.href:
            dot = f'<a data-go href="{attribute(mark.href)}" aria-label="{attribute(mark.label)}">{dot}</a>'
        drawn.append(dot)
    if chosen is not None and first <= chosen <= last:
        x = _x(chosen, first, last)
        drawn.append(f'<line class="chosen" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - BOTTOM}"/>')
    axis = _axes(first, last, 10**low if log else low, 10**high if log else high, height, integer=False)
    picked = f' data-pick="{attribute(pick)}"' if pick else ""
    picked += f' data-brush="{attribute(brush)}"' if brush else ""
    picked += f' data-first="{first}" data-after="{last}"' if picked else ""
    return _svg(axis + "".join(drawn), height, label, picked, interactive=bool(marks))


def _svg(content: str, height: int, label: str, more: str, *, interactive: bool) -> str:
    role = "group" if interactive else "img"
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="{role}" aria-label="{attribute(label)}" '
        f'data-left="{LEFT}" data-right="{RIGHT}"{more}>{content}</svg>'
    )


def _axes(first: int, last: int, low: float, high: float, height: int, *, integer: bool) -> str:
    ground = height - BOTTOM
    low_text, high_text = (f"{value:,.0f}" if integer else f"{value:.3g}" for value in (low, high))
    return (
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{ground}" y2="{ground}"/>'
        f'<text x="{LEFT - 5}" y="{TOP + 8}" text-anchor="end">{high_text}</text>'
        f'<text x="{LEFT - 5}" y="{ground}" text-anchor="end">{low_text}</text>'
        f'<text x="{LEFT}" y="{height - 5}">{first:,}</text>'
        f'<text x="{WIDTH - RIGHT}" y="{height - 5}" text-anchor="end">{last:,}</text>'
    )


def _x(step: float, first: int, after: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / max(1, after - first)


def _y(value: float, low: float, high: float, height: int) -> float:
    return height - BOTTOM - (height - TOP - BOTTOM) * (value - low) / (high - low)
