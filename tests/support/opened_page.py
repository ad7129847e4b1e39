"""A page as its reader sees it, run in this process by Streamlit's AppTest against a real API: no browser, no script."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from streamlit.components.v2.component_manager import BidiComponentManager
from streamlit.proto.WidgetStates_pb2 import WidgetState
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from tests.support.shown_html import ShownHtml, read_html
from ui.html.places import parse_href

__all__ = ["OpenedPage", "open_link", "open_page"]

MAIN = Path(__file__).parents[2] / "ui" / "pages" / "main.py"
TIMEOUT_S = 60
_COMPONENTS = BidiComponentManager()
"""Of all tabs: a new one would look through the metadata of every installed package first, for a quarter of a second."""


class OpenedPage:
    """One page in one tab. What is clicked or filled in changes it in place."""

    def __init__(self, app: AppTest) -> None:
        """Read what the app shows."""
        self.app = app
        self._read()

    def _read(self) -> None:
        assert not self.app.exception, [error.value for error in self.app.exception]
        self._parts = self.app.get("bidi_component")
        data = [_data(part.proto) for part in self._parts]
        self.html: ShownHtml = read_html("".join(html for each in data for html in each["parts"].values()))
        self.marked_spans: list[int] = [span for each in data for span in each["chosen"]]
        self.marked_document: list[int] = [span for each in data for span in each["of_document"]]

    @property
    def text(self) -> str:
        """The text of the page's HTML."""
        return self.html.text

    @property
    def problem(self) -> str:
        """What an alert says; "" where there is none."""
        return " ".join(element.text for element in self.html.elements if element.attributes.get("role") == "alert")

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the URL."""
        return dict(self.app.query_params)

    @property
    def page(self) -> str:
        """The name of the page that is shown."""
        pages = self.app._registered_pages
        return str(pages[self.app._finished_page_script_hash]["url_pathname"] or "trace")

    @property
    def tabs(self) -> dict[str, str]:
        """The links at the top of the page: the parameters that each keeps, by its label."""
        return {link.proto.label.strip("*"): link.proto.query_string for link in self.app.get("page_link")}

    @property
    def downloads(self) -> list[str]:
        """The labels of what can be downloaded."""
        buttons: list[Any] = list(self.app.get("download_button"))
        return [button.label for button in buttons]

    def fill(self, key: str, value: Any) -> Self:
        """Change the field of a key, as a reader does; the page sees it at once, or at the button of its form."""
        field: Any
        [field] = [element for element in self.app.main if getattr(element, "key", None) == key]
        field.set_value(value)
        return self

    def press(self, label: str) -> Self:
        """Press a button."""
        [button] = [button for button in self.app.button if button.label == label]
        button.click()
        return self.run()

    def run(self) -> Self:
        """Let the page see what was put into its fields."""
        self.app.run()
        self._read()
        return self

    def click(self, text: str) -> Self:
        """Click a link, by its text or label."""
        return self.go(self.html.links[text])

    def go(self, href: str) -> Self:
        """What the page's script does at a click on a link: it tells the server where the link leads.

        The link of a long text says `z=*`, for which the script puts what the page has.
        """
        [part, *_] = [part for part in self._parts if _has_link(part.proto, href)] or self._parts
        states = self.app._tree.get_widget_states()
        whole = href.replace("z=%2A", f"z={self.app.query_params.get('z', '')}")
        event = json.dumps([{"event": "go", "value": whole}])
        states.widgets.append(
            WidgetState(id=f"$$STREAMLIT_INTERNAL_KEY_{part.proto.id}__events", json_trigger_value=event)
        )
        self.app._run(states)
        self._read()
        return self


def open_page(page: str, params: Mapping[str, str] | None = None, /, **more: str) -> OpenedPage:
    """Open a page at a URL, in a new tab. The API is where the environment says."""
    app = AppTest.from_file(str(MAIN), default_timeout=TIMEOUT_S)
    app._bidi_component_manager = _COMPONENTS
    app._page_hash = calc_hash("" if page == "trace" else page)
    app.query_params.update({**(params or {}), **more})
    app.run()
    app._page_hash = ""
    return OpenedPage(app)


def open_link(href: str) -> OpenedPage:
    """Open a link of the pages in a new tab."""
    found = parse_href(href)
    assert found is not None, href
    return open_page(*found)


def _data(proto: Any) -> dict[str, Any]:
    text = proto.mixed.json if proto.WhichOneof("data") == "mixed" else proto.json
    return dict(json.loads(text))


def _has_link(proto: Any, href: str) -> bool:
    parts = _data(proto)["parts"].values()
    return any(href in read_html(html).links.values() for html in parts)
