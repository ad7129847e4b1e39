"""HTML on a page whose links move the page without loading it anew.

A click on an `a data-go` comes back as the trigger `go`; a link of another page is followed by `follow` at the next run's
beginning. Opened in a new tab, or sent to somebody, the same links work by themselves.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import streamlit as st

from ui.html.escape import EMPTY, Html
from ui.html.places import parse_href

__all__ = ["GO_PAGE", "show_html"]

GO_PAGE = "go_page"
_HTML = Path(__file__).parents[1] / "html"
_three_parts = st.components.v2.component(
    "kiseki_parts",
    html='<div class="k"><div data-part="top"></div><div class="split"><div data-part="left"></div>'
    '<div class="aside" data-part="aside" role="region" tabindex="0"></div></div></div>',
    css=(_HTML / "style.css").read_text("utf-8"),
    js=(_HTML / "linked_html.js").read_text("utf-8"),
)
_one_part = st.components.v2.component(
    "kiseki_one_part",
    html='<div class="k"><div data-part="top"></div></div>',
    css=(_HTML / "style.css").read_text("utf-8"),
    js=(_HTML / "linked_html.js").read_text("utf-8"),
)


def show_html(
    top: Html, *, key: str, page: str, left: Html | None = None, aside: Html = EMPTY, chosen: Sequence[int] = (),
    of_document: Sequence[int] = (), lang: str = "en",
) -> None:  # fmt: skip
    """Show HTML; with `left`, also a text, and an aside that stays in sight while the text scrolls.

    page: the page that shows it. chosen, of_document: spans of the text to mark, by index.
    """
    parts = {"top": str(top)} if left is None else {"top": str(top), "left": str(left), "aside": str(aside)}
    data = {"parts": parts, "chosen": list(chosen), "of_document": list(of_document), "lang": lang}
    mount = _one_part if left is None else _three_parts
    mount(key=key, data=data, on_go_change=partial(_go, key, page))


def _go(key: str, page: str) -> None:
    state: Mapping[str, str | None] = st.session_state.get(key) or {}
    found = parse_href(state.get("go") or "")
    if found is None:
        return
    if found[0] == page:
        st.query_params.from_dict(found[1])
    else:
        st.session_state[GO_PAGE] = found
