"""HTML on a page whose links move the page without loading it anew.

A click on an `a data-go` comes back as the trigger `go`; a link of another page is followed by `follow` at the next run's
beginning. Opened in a new tab, or sent to somebody, the same links work by themselves.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import streamlit as st

from ui.html.places import parse_href

__all__ = ["GO_PAGE", "live"]

GO_PAGE = "go_page"
_HTML = Path(__file__).parents[1] / "html"
_component = st.components.v2.component(
    "kiseki_live",
    html='<div class="k"><div data-part="top"></div><div class="split"><div data-part="left"></div>'
    '<div class="aside" data-part="aside" role="region" tabindex="0"></div></div></div>',
    css=(_HTML / "style.css").read_text("utf-8"),
    js=(_HTML / "live.js").read_text("utf-8"),
)
_simple = st.components.v2.component(
    "kiseki_live_one",
    html='<div class="k"><div data-part="top"></div></div>',
    css=(_HTML / "style.css").read_text("utf-8"),
    js=(_HTML / "live.js").read_text("utf-8"),
)


def live(
    top: str, *, key: str, page: str, left: str | None = None, aside: str = "", chosen: Sequence[int] = (),
    of_document: Sequence[int] = (), lang: str = "en",
) -> None:  # fmt: skip
    """Show HTML, escaped already; with `left`, also a text and what stands beside it while the text scrolls."""
    parts = {"top": top} if left is None else {"top": top, "left": left, "aside": aside}
    data = {"parts": parts, "chosen": list(chosen), "of_document": list(of_document), "lang": lang}
    mount = _simple if left is None else _component
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
