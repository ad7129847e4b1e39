"""Tables and lists of named values."""

from collections.abc import Iterable, Sequence

from ui.html.escape import Html, joined, tag

__all__ = ["definitions_html", "facts_html", "table_html"]


def facts_html(facts: Iterable[tuple[str, str]]) -> Html:
    """Numbers with their names, in a row."""
    items = joined(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts)
    return tag("dl", items, class_="facts")


def definitions_html(definitions: Iterable[tuple[str, str]]) -> Html:
    """Names with a value each, one below the other. Either may be HTML."""
    return tag("dl", joined(tag("dt", name) + tag("dd", value) for name, value in definitions), class_="small")


def table_html(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[bool] | None = None) -> Html:
    """A table that scrolls sideways where it is too wide. Cells are texts or HTML.

    numbers: for each column whether it holds numbers; by default all but the first do.
    """
    if numbers is None:
        numbers = [column > 0 for column in range(len(heads))]
    kinds = ["num" if is_number else "" for is_number in numbers]
    head = joined(tag("th", text, scope="col", class_=kind) for kind, text in zip(kinds, heads, strict=True))
    body = joined(
        tag("tr", *(tag("td", cell, class_=kind) for kind, cell in zip(kinds, row, strict=True))) for row in rows
    )
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", body))
    return tag("div", table, class_="scroll", tabindex=0)
