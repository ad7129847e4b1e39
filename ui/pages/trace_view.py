"""A trace as a page: the text with its spans marked, then spans and documents. Corpus text is escaped everywhere."""

import html
import json
from typing import Any

import streamlit as st

from search_api.trace_html import marked_html

__all__ = ["show_trace"]

Json = dict[str, Any]


def show_trace(found: Json) -> None:
    """Everything of one trace."""
    spans = found["spans"]
    if found["shards_failed"]:
        st.warning("Part of the index did not answer: " + "; ".join(found["failures"]))
    if not spans:
        st.html(marked_html(found["text"], []))
        st.info(f"No span of {found['min_length']} or more tokens occurs in the selected steps. Try a smaller length.")
        return
    covered, total = found["num_tokens_covered"], found["num_tokens"]
    first, second, third, fourth = st.columns(4)
    first.metric(
        "Tokens covered", f"{covered} of {total}", f"{covered / total:.0%}", delta_color="off", delta_arrow="off"
    )
    second.metric("Spans", len(spans))
    third.metric("Longest span", f"{max(span['num_tokens'] for span in spans)} tokens")
    fourth.metric("Took", f"{found['took_ms']:.1f} ms")
    st.html(marked_html(found["text"], spans))
    left, right = st.columns([3, 2])
    with left:
        st.subheader("Rarest spans")
        listed = sorted((span for span in spans if span["rarity_rank"] is not None), key=lambda s: s["rarity_rank"])
        for span in listed:
            _show_span(span)
    with right:
        st.subheader("Documents")
        st.dataframe(_documents(found), hide_index=True, width="stretch")
        st.download_button("Download as JSON", _json(found), "trace.json", "application/json")


def _show_span(span: Json) -> None:
    first, last = span["first_step"], span["last_step"]
    steps = f"step {first:,}" if first == last else f"steps {first:,}–{last:,}"
    times = "once" if span["count"] == 1 else f"{span['count']:,} times"
    title = f"{span['rarity_rank'] + 1} · {span['num_tokens']} tokens · seen {times} · {steps}"
    with st.expander(title, expanded=span["rarity_rank"] == 0):
        st.text(span["text"])
        if span["dp_ranks"] is not None:
            st.caption("data-parallel ranks: " + ", ".join(map(str, span["dp_ranks"])))
        for hit in span["hits"]:
            documents = " + ".join(f"{s['source']} / {s['document_id']}" for s in hit["segments"]) or "document unknown"
            st.html(
                f"<div><code>{html.escape(hit['address'])}</code> at token {hit['offset']} · "
                f"<b>{html.escape(documents)}</b></div>"
                f'<div style="opacity:.85;overflow-wrap:anywhere">… {html.escape(hit["context_before"])}'
                f"<b>{html.escape(span['text'])}</b>{html.escape(hit['context_after'])} …</div>"
            )
        left = span["count"] - len(span["hits"])
        if left > 0:
            st.caption(f"and {left:,} more")


def _documents(found: Json) -> list[Json]:
    return [
        {"source": d["source"], "document": d["document_id"], "tokens": d["num_tokens"], "spans": len(d["spans"])}
        for d in found["documents"]
    ]


def _json(found: Json) -> str:
    return json.dumps(found, indent=1, ensure_ascii=False)
