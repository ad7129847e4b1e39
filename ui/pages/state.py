"""The URL as the state of a page.

Widgets show what the URL says, and write into it when they are changed: the URL is the only memory. So a link opens the
same view anywhere, and the browser's back button undoes. A value that is the default stands in no URL.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from ui.html.places import Place
from ui.html.texts import Say

__all__ = ["View", "change_url", "number_in_url", "set_widget", "text_in_url"]


@dataclass(frozen=True, slots=True)
class View:
    """What every page is given: where it is, its run (as `GET /v1/runs/{run}`), and the language."""

    place: Place
    run: Mapping[str, Any]
    say: Say
    lang: str

    @property
    def run_id(self) -> str:
        """The run that is shown."""
        return str(self.run["run_id"])

    def text(self, name: str) -> str:
        """A parameter of the URL, "" where there is none."""
        return self.place.params.get(name, "")

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """A number of the URL, kept between low and high; the default where it is none."""
        return _number(self.text(name), default, low, high)

    def number_or_none(self, name: str) -> int | None:
        """A number of the URL; None where there is none."""
        text = self.text(name)
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def change_url(changes: Mapping[str, object]) -> None:
    """Put values into the URL, one step of the browser's history; None and "" take a parameter away."""
    params = {**st.query_params.to_dict(), **{name: str(value or "") for name, value in changes.items()}}
    st.query_params.from_dict({name: value for name, value in params.items() if value != ""})


def text_in_url(view: View, name: str, label: str, show: Callable[..., Any] = st.text_input, **more: Any) -> str:
    """A text field whose value is a parameter of the URL."""
    key = f"in_{view.place.page}_{name}"
    set_widget(key, view.text(name))
    show(label, key=key, on_change=_write, args=(name, key, "", more.pop("also", ())), **more)
    return view.text(name)


def number_in_url(
    view: View, name: str, label: str, *, default: int, low: int, high: int,
    show: Callable[..., Any] = st.number_input, **more: Any,
) -> int:  # fmt: skip
    """A number field or a slider whose value is a parameter of the URL."""
    key = f"in_{view.place.page}_{name}"
    value = view.number(name, default, low, high)
    set_widget(key, value)
    show(
        label, min_value=low, max_value=high, key=key, on_change=_write, args=(name, key, default, more.pop("also", ())),
        **more,
    )  # fmt: skip
    return value


def set_widget(key: str, value: object) -> None:
    """Make a widget show a value. One that shows it already is let alone: it may have been changed again meanwhile."""
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value


def _number(text: str, default: int, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        return default
    return min(high, max(low, int(text)))


def _write(name: str, key: str, default: object, also: tuple[str, ...]) -> None:
    value = st.session_state[key]
    change_url({name: None if value == default else value, **dict.fromkeys(also)})
