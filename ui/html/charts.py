"""Small charts as SVG: bars over steps and lines over steps. Colours come from the page's style sheet, so both themes work.

Bars and marked points are links. Each chart has a text that says the same for who does not see it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ui.html.escape import EMPTY, Html, joined, tag

__all__ = ["Bar", "Mark", "Series", "bar_chart", "line_chart"]

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


def bar_chart(
    data: Sequence[Bar], *, label: str, checkpoint: int | None = None, height: int = 110, brush: str = ""
) -> Html:
    """Bars over steps; a line stands after the step of the model checkpoint. brush: a link with {first} and {last}."""
    if not data:
        return EMPTY
    first, after = data[0].first, max(data[-1].after, data[0].first + 1)
    most = max(1, *(bar.count for bar in data))
    drawn = []
    for bar in data:
        x0, x1 = (_x(step, first, after) for step in (bar.first, bar.after))
        tall = (height - TOP - BOTTOM) * bar.count / most
        tall = max(tall, 2.0) if bar.count else 0.0
        shape = tag(
            "rect", tag("title", bar.label), class_="bar dim" if bar.dim else "bar", x=f"{x0 + 0.5:.1f}",
            y=f"{height - BOTTOM - tall:.1f}", width=f"{max(1.0, x1 - x0 - 1):.1f}", height=f"{tall:.1f}",
        )  # fmt: skip
        drawn.append(_linked(shape, bar.href, bar.label) if bar.count else shape)
    if checkpoint is not None:
        drawn.append(_upright("checkpoint", _x(min(checkpoint + 1, after), first, after), height))
    axes = _axes(first, after - 1, "0", f"{most:,}", height)
    return _svg(
        axes + joined(drawn), height, label, interactive=any(bar.href for bar in data), brush=brush, first=first,
        after=after,
    )  # fmt: skip


def line_chart(
    series: Series, *, label: str, marks: Sequence[Mark] = (), height: int = 150, pick: str = "", brush: str = "",
    chosen: int | None = None,
) -> Html:  # fmt: skip
    """A line over steps, with marks. pick: a link with {step}, which a click anywhere leads to.

    brush: a link with {first} and {last}. chosen: a step with a line of its own.
    """
    points = [point for point in zip(series.steps, series.values, strict=True) if math.isfinite(point[1])]
    if not points:
        return EMPTY
    first, last = series.steps[0], max(series.steps[-1], series.steps[0] + 1)
    low, high = min(value for _, value in points), max(value for _, value in points)
    if low == high:
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
    path = " ".join(f"{_x(step, first, last):.1f},{_y(value, low, high, height):.1f}" for step, value in points)
    drawn = [tag("polyline", class_="line", points=path)]
    radius = 5 if len(marks) <= MANY_MARKS else 3
    for mark in marks:
        y = _y(mark.value, low, high, height) if math.isfinite(mark.value) else TOP
        dot = tag(
            "circle", tag("title", mark.label), class_="mark chosen" if mark.chosen else "mark",
            cx=f"{_x(mark.step, first, last):.1f}", cy=f"{y:.1f}", r=radius,
        )  # fmt: skip
        drawn.append(_linked(dot, mark.href, mark.label))
    if chosen is not None and first <= chosen <= last:
        drawn.append(_upright("chosen", _x(chosen, first, last), height))
    axes = _axes(first, last, f"{low:.3g}", f"{high:.3g}", height)
    return _svg(
        axes + joined(drawn), height, label, interactive=bool(marks), pick=pick, brush=brush, first=first, after=last
    )


def _linked(shape: Html, href: str, label: str) -> Html:
    return tag("a", shape, data_go=True, href=href, aria_label=label) if href else shape


def _upright(name: str, x: float, height: int) -> Html:
    return tag("line", class_=name, x1=f"{x:.1f}", x2=f"{x:.1f}", y1=0, y2=height - BOTTOM)


def _svg(
    content: Html, height: int, label: str, *, interactive: bool, first: int, after: int, pick: str = "", brush: str = ""
) -> Html:  # fmt: skip
    """The drawing. Its steps from first on stand there for the page's script, where it does something with them."""
    steps: dict[str, int] = {"data_first": first, "data_after": after} if pick or brush else {}
    return tag(
        "svg", content, class_="chart", viewBox=f"0 0 {WIDTH} {height}", role="group" if interactive else "img",
        aria_label=label, data_left=LEFT, data_right=RIGHT, data_pick=pick, data_brush=brush, **steps,
    )  # fmt: skip


def _axes(first: int, last: int, low: str, high: str, height: int) -> Html:
    ground = height - BOTTOM
    return (
        tag("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=ground, y2=ground)
        + tag("text", high, x=LEFT - 5, y=TOP + 8, text_anchor="end")
        + tag("text", low, x=LEFT - 5, y=ground, text_anchor="end")
        + tag("text", f"{first:,}", x=LEFT, y=height - 5)
        + tag("text", f"{last:,}", x=WIDTH - RIGHT, y=height - 5, text_anchor="end")
    )


def _x(step: float, first: int, after: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / max(1, after - first)


def _y(value: float, low: float, high: float, height: int) -> float:
    return height - BOTTOM - (height - TOP - BOTTOM) * (value - low) / (high - low)
