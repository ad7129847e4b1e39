"""The pages' door to the API: one client, and problems in words."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import streamlit as st

from search_api.client import ApiError, Client, ClientOptions
from train_hooks.export_format.errors import KisekiError
from ui.html.messages import problem_html
from ui.html.texts import Say
from ui.pages.linked_html import show_html
from ui.pages.state import View

__all__ = ["client", "gaps", "problems_in_words", "run_of", "runs", "sequence", "trace"]

TIMEOUT_S = 12.0  # the API's longest deadline is 10 s
Json = dict[str, Any]


@st.cache_resource(on_release=Client.close)
def client() -> Client:
    """The client of this process. It gives up soon: somebody is waiting before a page."""
    return Client(os.environ["KISEKI_API_URL"], ClientOptions(timeout_s=TIMEOUT_S, max_retries=1, max_wait_s=3.0))


@contextmanager
def problems_in_words(page: str, say: Say, lang: str) -> Iterator[None]:
    """Show a problem of what stands inside as words, with the way out, and stop the page there."""
    try:
        yield
    except KisekiError as error:
        kind = error.kind if isinstance(error, ApiError) else "input"
        status = error.status if isinstance(error, ApiError) else 400
        show_html(problem_html(say, status, kind, str(error)), key=f"{page}_problem", page=page, lang=lang)
        st.stop()


def runs() -> list[Json]:
    """The runs there are."""
    return client().runs()


def run_of(run_id: str) -> Json:
    """A run with its attempts."""
    return client().run(run_id)


def trace(view: View, **asked: Any) -> Json:
    """A trace of the view's run. Nothing is kept: what is taken down must be gone from the next look on."""
    return dict(client().trace(asked.pop("text", None), run=view.run_id, **asked))


def sequence(address: str) -> Json:
    """A packed sequence, with each token's text."""
    return dict(client().sequence(address, tokens=True))


def gaps(view: View) -> Json:
    """What the view's run misses."""
    return dict(client().gaps(view.run_id))
