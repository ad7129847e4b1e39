"""Rows of a query as HTML: a table whose addresses and documents are links, and a chart where there is something to draw."""

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ui.html.charts import Bar, Series, bars, lines
from ui.html.escape import one_line, text_html
from ui.html.places import Place
from ui.html.texts import Say

__all__ = ["chart_html", "rows_html"]

SHOWN_ROWS, CELL_CHARACTERS, MAX_BARS = 200, 200, 400


def rows_html(place: Place, say: Say, table: pa.Table) -> str:
    """The first rows. Names of columns are the query's."""
    kinds = [' class="num"' if _is_number(field.type) else "" for field in table.schema]
    head = "".join(f"<th{kind}>{text_html(name)}</th>" for kind, name in zip(kinds, table.column_names, strict=True))
    body = []
    for row in table.slice(0, SHOWN_ROWS).to_pylist(maps_as_pydicts=None):
        cells = (
            f"<td{kind}>{_cell(place, name, row)}</td>" for kind, name in zip(kinds, table.column_names, strict=True)
        )
        body.append(f"<tr>{''.join(cells)}</tr>")
    left = table.num_rows - SHOWN_ROWS
    more = say("{n} more rows are in the file.", n=f"{left:,}") if left > 0 else ""
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        f"<p>{text_html(more)}</p>"
    )


def chart_html(say: Say, table: pa.Table) -> str:
    """A chart of a step or bin column against the first number beside it; "" where there is none, or steps stand twice."""
    names = table.column_names
    across = next((name for name in names if name in ("global_step", "step", "bin", "hundredth")), None)
    if across is None or not pa.types.is_integer(table.schema.field(across).type) or table.num_rows < 2:
        return ""
    steps = table.column(across).to_pylist()
    if None in steps or steps != sorted(set(steps)):
        return ""
    parts = []
    for name in names:
        kind = table.schema.field(name).type
        if name == across or not _is_number(kind) or pa.types.is_decimal(kind):
            continue
        values = [math.nan if value is None else float(value) for value in table.column(name).to_pylist()]
        label = say("{name} over {across}", name=name, across=across)
        if pa.types.is_integer(kind) and len(values) <= MAX_BARS and min(values) >= 0:
            drawn = bars(_bars(steps, values), label=label)
        else:
            drawn = lines(Series(steps, values), label=label)
        parts.append(f"<h3>{text_html(label)}</h3>{drawn}" if drawn else "")
    return "".join(parts)


def _bars(steps: Sequence[int], values: Sequence[float]) -> list[Bar]:
    ends = [*steps[1:], steps[-1] + 1]
    return [Bar(a, b, int(value), f"{a:,}: {value:,.0f}") for a, b, value in zip(steps, ends, values, strict=True)]


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _cell(place: Place, name: str, row: dict[str, Any]) -> str:
    value = row[name]
    if value is None:
        return '<span class="dim">–</span>'
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value.hex() if isinstance(value, bytes) else str(value)
    shown = text_html(one_line(text, CELL_CHARACTERS))
    if name == "address":
        return place.link(place.to("sequence", address=text), shown)
    if name == "document_id" and row.get("source"):
        return place.link(place.to("documents", source=str(row["source"]), document=text), shown)
    return shown
