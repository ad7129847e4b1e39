"""The SQL page: questions to the catalog, ready-made or one's own, as a table, a chart or a file."""

import io

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import streamlit as st

from search_api.client import ApiError
from search_api.client.answers import Table
from ui.html.canned_queries import QUERIES, TITLES
from ui.html.escape import text_html
from ui.html.messages import message_html, problem_html
from ui.html.result_table import chart_html, rows_html
from ui.pages.api import client
from ui.pages.live import live
from ui.pages.state import View, change_url, put

__all__ = ["show"]


def show(view: View) -> None:
    """The page."""
    say = view.say
    live(_canned(view), key="sql_canned", page="sql", lang=view.lang)
    canned = view.text("canned")
    statement = view.text("sql") or QUERIES.get(canned, "")
    put("in_sql", statement)
    with st.form("sql_form", border=False):
        st.text_area(say("One SELECT over the catalog"), key="in_sql", height=150, placeholder=QUERIES["sources"])
        st.form_submit_button(say("Ask"), on_click=_submit)
    if not statement.strip():
        words = say(
            "Choose a question above, or write one. The views are runs, attempts, steps, step_metrics, sequences, "
            "sequence_sources, segments, documents, shards and gaps; docs/catalog.md has their columns. Nothing can be changed."
        )
        live(message_html(words), key="sql_empty", page="sql", lang=view.lang)
        return
    try:
        with st.spinner(say("Asking the catalog …")):
            table = client().sql(statement, view.run_id)
    except ApiError as error:
        live(_problem(view, error), key="sql_problem", page="sql", lang=view.lang)
        return
    _show_rows(view, table)


def _submit() -> None:
    statement = st.session_state["in_sql"].strip()
    canned = next((name for name, query in QUERIES.items() if query == statement), None)
    change_url({"sql": None if canned else statement, "canned": canned})


def _canned(view: View) -> str:
    """Links to the ready-made questions."""
    items = []
    for name, title in TITLES.items():
        label = text_html(view.say(TITLES[name]))
        items.append(
            f'<span class="on" aria-current="true">{label}</span>'
            if view.text("canned") == name
            else view.place.link(view.place.here(canned=name, sql=None), label, title=title)
        )
    return f'<nav class="near" aria-label="{text_html(view.say("Ready-made questions"))}">{"".join(items)}</nav>'


def _problem(view: View, error: ApiError) -> str:
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
    head = f'<h2 data-test="rows">{text_html(words)}</h2>'
    if table.truncated:
        cut = say("There are more: the server stops at its limit of rows or bytes. `kiseki sql RUN` has no such limit.")
        head += message_html(cut, "warning")
    with st.container(horizontal=True):
        st.download_button(
            say("Download CSV"), lambda: _csv(arrow), "rows.csv", "text/csv", on_click="ignore", key="sql_csv"
        )
        st.download_button(
            say("Download Parquet"), lambda: _parquet(arrow), "rows.parquet", on_click="ignore", key="sql_parquet"
        )
    body = rows_html(view.place, say, arrow) if arrow.num_rows else message_html(say("The query has no rows."))
    live(head + chart_html(say, arrow) + body, key="sql_rows", page="sql", lang=view.lang)


def _csv(table: pa.Table) -> bytes:
    """CSV; what CSV cannot hold, such as lists, as text."""
    plain = [
        column.cast(pa.string()) if pa.types.is_dictionary(column.type)
        else pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
        if pa.types.is_nested(column.type) or pa.types.is_binary(column.type) or pa.types.is_fixed_size_binary(column.type)
        else column
        for column in table.columns
    ]  # fmt: skip
    file = io.BytesIO()
    pa_csv.write_csv(pa.table(plain, names=table.column_names), file)
    return file.getvalue()


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()
