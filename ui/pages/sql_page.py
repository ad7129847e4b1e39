"""The SQL page: questions to the catalog, ready-made or one's own, as a table, a chart or a file."""

import streamlit as st

from search_api.client import ApiError
from search_api.client.answers import Table
from ui.html.canned_queries import QUERIES, TITLES
from ui.html.escape import Html, tag
from ui.html.messages import message_html, problem_html
from ui.html.result_table import chart_html, rows_html
from ui.pages.api import client
from ui.pages.downloads import table_csv, table_parquet
from ui.pages.linked_html import show_html
from ui.pages.state import View, change_url, set_widget

__all__ = ["show"]


def show(view: View) -> None:
    """The page."""
    say = view.say
    show_html(_canned(view), key="sql_canned", page="sql", lang=view.lang)
    canned = view.text("canned")
    statement = view.text("sql") or QUERIES.get(canned, "")
    set_widget("in_sql", statement)
    with st.form("sql_form", border=False):
        st.text_area(say("One SELECT over the catalog"), key="in_sql", height=150, placeholder=QUERIES["sources"])
        st.form_submit_button(say("Ask"), on_click=_submit)
    if not statement.strip():
        words = say(
            "Choose a question above, or write one. The views are runs, attempts, steps, step_metrics, sequences, "
            "sequence_sources, segments, documents, shards and gaps; docs/catalog.md has their columns. Nothing can be changed."
        )
        show_html(message_html(words), key="sql_empty", page="sql", lang=view.lang)
        return
    try:
        with st.spinner(say("Asking the catalog …")):
            table = client().sql(statement, view.run_id)
    except ApiError as error:
        show_html(_problem(view, error), key="sql_problem", page="sql", lang=view.lang)
        return
    _show_rows(view, table)


def _submit() -> None:
    statement = st.session_state["in_sql"].strip()
    canned = next((name for name, query in QUERIES.items() if query == statement), None)
    change_url({"sql": None if canned else statement, "canned": canned})


def _canned(view: View) -> Html:
    """Links to the ready-made questions."""
    items = []
    for name, title in TITLES.items():
        label = view.say(TITLES[name])
        items.append(
            tag("span", label, class_="on", aria_current="true")
            if view.text("canned") == name
            else view.place.link(view.place.here(canned=name, sql=None), label, title=title)
        )
    return tag("nav", *items, class_="near", aria_label=view.say("Ready-made questions"))


def _problem(view: View, error: ApiError) -> Html:
    """Where SQL is off, how it is turned on."""
    say = view.say
    if error.kind == "forbidden":
        words = say(
            "This server does not answer SQL for the pages. Whoever runs it turns it on with `kiseki serve RUN --sql`; with "
            "keys, the pages' key needs the action sql and no restricted sources. On a command line `kiseki sql RUN` asks the "
            "same catalog."
        )
        return message_html(f"{words}\n{error.detail}", "warning")
    return problem_html(say, error.status, error.kind, error.detail)


def _show_rows(view: View, table: Table) -> None:
    say, arrow = view.say, table.to_arrow()
    words = say("{n} rows", n=f"{arrow.num_rows:,}")
    head = tag("h2", words, data_test="rows")
    if table.truncated:
        cut = say("There are more: the server stops at its limit of rows or bytes. `kiseki sql RUN` has no such limit.")
        head += message_html(cut, "warning")
    with st.container(horizontal=True):
        st.download_button(
            say("Download CSV"), lambda: table_csv(arrow), "rows.csv", "text/csv", on_click="ignore", key="sql_csv"
        )
        st.download_button(
            say("Download Parquet"), lambda: table_parquet(arrow), "rows.parquet", on_click="ignore", key="sql_parquet"
        )
    body = rows_html(view.place, say, arrow) if arrow.num_rows else message_html(say("The query has no rows."))
    show_html(head + chart_html(say, arrow) + body, key="sql_rows", page="sql", lang=view.lang)
