"""A series as a chart of braille dots. Each column spans the smallest to the largest value of its steps: a spike of one
step among thousands is one dot column high, and never averaged away."""

import itertools
import math
from collections.abc import Iterator, Sequence

__all__ = ["chart"]

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
LABEL = 9


def chart(
    title: str, steps: Sequence[int], values: Sequence[float], marked: set[int], *, width: int, rows: int
) -> list[str]:
    """Lines of a chart at most `width` wide: values over steps (ascending), `rows` lines high, and marks below.

    Values that are not finite are not drawn; steps in `marked` are.
    """
    finite = [value for value in values if math.isfinite(value)]
    columns = max(4, width - LABEL - 2)
    if not finite:
        return [f"{title}: no value"]
    first, last = steps[0], steps[-1]
    low, high = min(finite), max(finite)
    grid = [[0] * columns for _ in range(rows)]
    places = [
        (_scaled(step, first, last, 2 * columns), _scaled(value, low, high, 4 * rows)) if math.isfinite(value) else None
        for step, value in zip(steps, values, strict=True)
    ]
    for before, place in itertools.pairwise([None, *places]):
        if place is not None:
            for x, smallest, largest in _line(before or place, place):
                for y in range(smallest, largest + 1):
                    grid[rows - 1 - y // 4][x // 2] |= DOTS[3 - y % 4][x % 2]
    labels = {0: f"{high:.4g}", rows - 1: f"{low:.4g}"}
    lines = [title] + [
        f"{labels.get(row, ''):>{LABEL}} │" + "".join(chr(0x2800 + dots) for dots in line).rstrip("\u2800")
        for row, line in enumerate(grid)
    ]
    marks = {_scaled(step, first, last, columns) for step in marked}
    if marks:
        lines.append(" " * (LABEL + 2) + "".join("▲" if x in marks else " " for x in range(columns)).rstrip())
    ends_line = f"{first:<{max(1, columns - len(str(last)))}}{last}" if last > first else str(first)
    return [*lines, f"{'step':>{LABEL}}  {ends_line}"]


def _scaled(value: float, low: float, high: float, places: int) -> int:
    """Place 0 … places - 1 of a value between low and high."""
    return 0 if high <= low else min(places - 1, int((value - low) / (high - low) * places))


def _line(begin: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
    """(x, lowest y, highest y) of a line of dots from one place to the next, which is not further left."""
    (x0, y0), (x1, y1) = begin, end
    edges = [round(y0 + (y1 - y0) * k / (x1 - x0 + 1)) for k in range(x1 - x0 + 1)] + [y1]
    for k in range(x1 - x0 + 1):
        yield x0 + k, min(edges[k], edges[k + 1]), max(edges[k], edges[k + 1])
