"""A series as a chart of braille dots. Each column spans the smallest to the largest value of its steps: a spike of one
step among thousands is one dot column high, and never averaged away."""

import math
from collections.abc import Sequence

__all__ = ["chart"]

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
LABEL = 9


def chart(
    title: str, steps: Sequence[int], values: Sequence[float], marked: set[int], *, width: int, rows: int
) -> list[str]:
    """Lines of a chart at most `width` wide: values over steps (ascending), `rows` lines high, and marks below.

    Values that are not finite are not drawn; steps in `marked` are.
    """
    finite = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    columns = max(4, width - LABEL - 2)
    if not finite:
        return [f"{title}: no value"]
    first, last = steps[0], steps[-1]
    low, high = min(value for _, value in finite), max(value for _, value in finite)
    grid = [[0] * columns for _ in range(rows)]
    ends: dict[int, tuple[float, float]] = {}
    for step, value in finite:
        x = _scaled(step, first, last, 2 * columns)
        smallest, largest = ends.get(x, (value, value))
        ends[x] = (min(smallest, value), max(largest, value))
    for x, (smallest, largest) in ends.items():
        for y in range(_scaled(smallest, low, high, 4 * rows), _scaled(largest, low, high, 4 * rows) + 1):
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
