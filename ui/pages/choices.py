"""A choice of a few whose value is a parameter of the URL."""

from collections.abc import Mapping

import streamlit as st

from ui.pages.state import View, change_url, set_widget

__all__ = ["choice_in_url"]


def choice_in_url(view: View, name: str, label: str, labels: Mapping[str, str], *, also: tuple[str, ...] = ()) -> str:
    """The chosen one of `labels`, of which the first is the default. also: parameters that a change takes away."""
    key, default = f"in_{view.place.page}_{name}", next(iter(labels))
    value = view.text(name) if view.text(name) in labels else default
    set_widget(key, value)

    def write() -> None:
        chosen = st.session_state[key]
        change_url({name: None if chosen == default else chosen, **dict.fromkeys(also)})

    st.selectbox(label, list(labels), format_func=labels.__getitem__, key=key, on_change=write, width=240)
    return value
