"""Rows of a query as HTML: a table whose addresses and documents are links, and a chart where there is something to draw."""

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ui.html.charts import Bar, Series, bar_chart, line_chart
from ui.html.escape import EMPTY, Html, joined, one_line, tag
from ui.html.places import Place
from ui.html.tables import table_html
from ui.html.texts import Say

__all__ = ["chart_html", "rows_html"]

SHOWN_ROWS, CELL_CHARACTERS, MAX_BARS = 200, 200, 400


def rows_html(place: Place, say: Say, table: pa.Table) -> Html:
    """The first rows. Names of columns are the query's."""
    numbers = [_is_number(field.type) for field in table.schema]
    rows = (
        [_cell(place, name, row) for name in table.column_names]
        for row in table.slice(0, SHOWN_ROWS).to_pylist(maps_as_pydicts=None)
    )
    left = table.num_rows - SHOWN_ROWS
    more = say("{n} more rows are in the file.", n=f"{left:,}") if left > 0 else ""
    return table_html(table.column_names, rows, numbers=numbers) + tag("p", more)


def chart_html(say: Say, table: pa.Table) -> Html:
    """A chart of a step or bin column against the numbers beside it; empty where there is none, or a step is there twice."""
    names = table.column_names
    across = next((name for name in names if name in ("global_step", "step", "bin", "hundredth")), None)
    if across is None or not pa.types.is_integer(table.schema.field(across).type) or table.num_rows < 2:
        return EMPTY
    steps = table.column(across).to_pylist()
    if None in steps or steps != sorted(set(steps)):
        return EMPTY
    parts = []
    for name in names:
        kind = table.schema.field(name).type
        if name == across or not _is_number(kind) or pa.types.is_decimal(kind):
            continue
        values = [math.nan if value is None else float(value) for value in table.column(name).to_pylist()]
        label = say("{name} over {across}", name=name, across=across)
        if pa.types.is_integer(kind) and len(values) <= MAX_BARS and min(values) >= 0:
            drawn = bar_chart(_bars(steps, values), label=label)
        else:
            drawn = line_chart(Series(steps, values), label=label)
        parts.append(tag("h3", label) + drawn if drawn else EMPTY)
    return joined(parts)


def _bars(steps: Sequence[int], values: Sequence[float]) -> list[Bar]:
    ends = [*steps[1:], steps[-1] + 1]
    return [Bar(a, b, int(value), f"{a:,}: {value:,.0f}") for a, b, value in zip(steps, ends, values, strict=True)]


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _cell(place: Place, name: str, row: dict[str, Any]) -> str:
    value = row[name]
    if value is None:
        return tag("span", "–", class_="dim")
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value.hex() if isinstance(value, bytes) else str(value)
    shown = one_line(text, CELL_CHARACTERS)
    if name == "address":
        return place.link(place.to("sequence", address=text), shown)
    if name == "document_id" and row.get("source"):
        return place.link(place.to("documents", source=str(row["source"]), document=text), shown)
    return shown
