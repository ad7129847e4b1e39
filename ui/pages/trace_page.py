"""The trace page: paste or upload what a model wrote, see its spans in the text, and the evidence of one beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from train_hooks.export_format.errors import KisekiError
from ui.html.escape import Html, tag
from ui.html.marked_text import marked_text, span_name
from ui.html.messages import generation_html, message_html, problem_html
from ui.html.places import pack, unpack
from ui.html.trace_head import trace_head_html
from ui.html.trace_panel import describe_spans, documents_html, span_html, spans_html, tabs_html
from ui.html.uploads import Output, read_outputs, read_upload
from ui.pages.api import trace
from ui.pages.downloads import trace_csv, trace_json
from ui.pages.linked_html import show_html
from ui.pages.state import View, change_url, number_in_url, set_widget, text_in_url

__all__ = ["show"]

Json = Mapping[str, Any]
PLAIN_IN_URL = 300
HITS, LEAST = 10, 8
NEW_TEXT = ("span", "doc", "panel")


def show(view: View) -> None:
    """The page."""
    say = view.say
    output = _output(view)
    _ask(view, output)
    last_step = view.run["last_step"]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        min_length = number_in_url(
            view, "min", say("Shortest span, in tokens"), default=LEAST, low=1, high=1000, width=200, also=NEW_TEXT[:2]
        )
        source = text_in_url(view, "source", say("Only this source"), width=220, also=NEW_TEXT)
        checkpoint = number_in_url(
            view, "checkpoint", say("As the model checkpoint of this step had seen it"), default=last_step, low=1,
            high=max(2, last_step), show=st.slider,
        )  # fmt: skip
    if not output.text.strip():
        show_html(
            message_html(say("Paste a text above, or upload a file, to see which parts of it the model was trained on."))
            + _what_a_trace_is_not(view),
            key="trace_empty", page="trace", lang=view.lang,
        )  # fmt: skip
        return
    selection = {"before_step": checkpoint + 1, **({"source": source} if source else {})}
    with st.spinner(say("Looking for the text in what was trained on …")):
        found = trace(
            view, text=output.text, prompt=output.prompt, min_length=min_length, num_hits=HITS, **selection
        )  # fmt: skip
    _show_trace(view, found, checkpoint, selection)


def _output(view: View) -> Output:
    """What the URL says is to be traced."""
    try:
        packed = unpack(view.text("z")) if view.text("z") else {}
    except KisekiError as error:
        show_html(problem_html(view.say, 400, "", str(error)), key="trace_cut", page="trace", lang=view.lang)
        return Output("")
    return Output(packed.get("text", view.text("text")), packed.get("prompt", ""))


def _ask(view: View, output: Output) -> None:
    """The form: a text, or a file of one or many."""
    say = view.say
    set_widget("in_trace_text", output.text)
    with st.expander(say("Text"), expanded=not output.text.strip()):
        with st.form("trace_form", border=False):
            st.text_area(
                say("What a model wrote: text, or a chat as JSON"), key="in_trace_text", height=150,
                placeholder=say("Paste here"),
            )  # fmt: skip
            st.form_submit_button(say("Trace"), on_click=_submit)
        with st.container(horizontal=True):
            file = st.file_uploader(
                say("or a file: .txt, chat .json, .jsonl of an OpenAI-style API"),
                key="in_trace_file",
                max_upload_size=20,
            )
        if file is not None:
            _choose(view, file.name, file.getvalue())
    if output.prompt:
        with st.expander(say("Prompt")):
            show_html(tag("div", output.prompt, class_="text", dir="auto"), key="trace_prompt", page="trace")


def _choose(view: View, name: str, content: bytes) -> None:
    """Take an output of a file: the only one, or the one that is chosen."""
    try:
        outputs = read_upload(name, content)
    except KisekiError as error:
        show_html(problem_html(view.say, 400, "", str(error)), key="trace_upload", page="trace", lang=view.lang)
        return
    if len(outputs) > 1:
        label = view.say("Output, of {n} in the file", n=f"{len(outputs):,}")
        st.number_input(label, min_value=1, max_value=len(outputs), key="in_trace_number", width=260)
    st.button(view.say("Trace this output"), on_click=_take_chosen, args=(outputs,))


def _take_chosen(outputs: Sequence[Output]) -> None:
    """The output whose number stands in the field at the click, whatever the page has seen of it yet."""
    number = int(st.session_state.get("in_trace_number", 1)) if len(outputs) > 1 else 1
    _put_into_url(outputs[number - 1])


def _submit() -> None:
    text = st.session_state["in_trace_text"]
    outputs = read_outputs(text)
    _put_into_url(outputs[-1] if outputs else Output(""))


def _put_into_url(output: Output) -> None:
    """Put an output into the URL."""
    text = output.text.replace("\r\n", "\n")
    plain = not output.prompt and len(text.encode("utf-8", "replace")) <= PLAIN_IN_URL
    packed = None if plain or not text else pack({"text": text, **({"prompt": output.prompt} if output.prompt else {})})
    change_url({**dict.fromkeys(NEW_TEXT), "text": text if plain else None, "z": packed})


def _show_trace(view: View, found: Json, checkpoint: int, selection: Json) -> None:
    say, place, spans = view.say, view.place, found["spans"]
    head = generation_html(say, view.number_or_none("gen"), found["generation"]) + trace_head_html(
        say, found, checkpoint
    )
    chosen = next((index for index, span in enumerate(spans) if span_name(span) == view.text("span")), None)
    document = view.number_or_none("doc")
    documents = found["documents"]
    in_document = documents[document]["spans"] if document is not None and document < len(documents) else ()
    if not spans:
        hint = say(
            "No span of {n} or more tokens occurs in the selected steps. Try a smaller length or a later checkpoint.",
            n=found["min_length"],
        )
        aside = message_html(hint)
    elif chosen is not None:
        aside = _one_span(view, found, chosen, checkpoint, selection)
    else:
        panel = "documents" if view.text("panel") == "documents" else "spans"
        listed = documents_html if panel == "documents" else spans_html
        num_listed = sum(span["rarity_rank"] is not None for span in spans)
        aside = tabs_html(place, say, panel, num_listed, len(documents)) + listed(place, say, found)
    text = marked_text(place, found["text"], spans, describe_spans(say, spans))
    show_html(
        head, key="trace", page="trace", left=text, aside=aside, lang=view.lang, of_document=in_document,
        chosen=() if chosen is None else (chosen,),
    )  # fmt: skip
    _show_downloads(view, found)


def _one_span(view: View, found: Json, chosen: int, checkpoint: int, selection: Json) -> Html:
    """One span alone, in the whole run and up to the checkpoint."""
    span, others = found["spans"][chosen], {key: v for key, v in selection.items() if key != "before_step"}
    alone: dict[str, Any] = {"token_ids": span["token_ids"], "min_length": len(span["token_ids"]), "max_spans": 1}
    whole = trace(view, **alone, num_hits=0, **others)
    seen = trace(view, **alone, num_hits=HITS, **selection)
    return span_html(
        view.place, view.say, found, chosen, whole=whole, seen=seen, checkpoint=checkpoint,
        last_step=view.run["last_step"],
    )  # fmt: skip


def _show_downloads(view: View, found: Json) -> None:
    """Link, JSON, CSV; and what a trace is not."""
    say = view.say
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            say("Download JSON"), lambda: trace_json(found), "trace.json", "application/json",
            on_click="ignore",
        )  # fmt: skip
        st.download_button(say("Download CSV"), lambda: trace_csv(found), "trace.csv", "text/csv", on_click="ignore")
    copy = tag("button", say("Copy link"), data_copy="link", data_gen=found["generation"], data_done=say("Copied"))
    show_html(tag("p", copy) + _what_a_trace_is_not(view), key="trace_foot", page="trace", lang=view.lang)


def _what_a_trace_is_not(view: View) -> Html:
    words = view.say(
        "A trace shows where and when a text was trained on. It does not show why a model wrote it: a span may be a "
        "common phrase, or learnt elsewhere, and a count says nothing of a cause."
    )
    return tag("p", words, class_="dim")
