"""What distinguishes a step, as HTML: its sequences, the most unusual first, its means, sources, documents and n-grams."""

from collections.abc import Mapping, Sequence
from typing import Any

from ui.html.escape import EMPTY, LINE_BREAK, Html, joined, one_line, tag
from ui.html.messages import failures_html, message_html
from ui.html.places import Place
from ui.html.tables import table_html
from ui.html.texts import Say

__all__ = ["explanation_html", "number", "percent", "spike_text"]

Json = Mapping[str, Any]
REASONS, FEATURES, SOURCES = 4, 8, 10
NAMES = {
    "loss": "loss", "surprisal": "bits a token, by the window's tokens", "new_pair_share": "token pairs new to the window",
    "twin_share": "tokens that another row of the step has too", "repeated_share": "tokens in 8-grams that repeat",
    "compression_ratio": "compression", "seen_share": "tokens seen at an earlier step",
    "again_share": "tokens of document parts seen again", "source_surprise": "bits for its sources",
    "num_documents": "documents", "latin_share": "Latin letters", "han_share": "Han characters", "kana_share": "kana",
    "hangul_share": "hangul", "cyrillic_share": "Cyrillic letters", "other_letter_share": "letters of other scripts",
    "digit_share": "digits", "symbol_share": "punctuation and symbols", "grad_norm": "gradient norm",
}  # fmt: skip


def explanation_html(place: Place, say: Say, found: Json) -> Html:
    """All of it, for one step."""
    step = found["global_step"]
    close = place.link(place.here(step=None, attempt_of=None), say("close"))
    head = say(
        "Step {step} against steps {first} to {last}", step=f"{step:,}", first=f"{found['window_first_step']:,}",
        last=f"{found['window_last_step']:,}",
    )  # fmt: skip
    facts = [say("attempt {n}", n=found["attempt"]), say("{n} sequences", n=f"{found['num_sequences']:,}")]
    facts += [] if found["canonical"] else [say("superseded: a later attempt took up from before it")]
    facts += [f"{say(NAMES[name])} {number(found[name])}" for name in ("loss", "grad_norm") if found[name] is not None]
    parts = [
        tag("h2", head), tag("p", close), failures_html(say, found), tag("p", ", ".join(facts)),
        *(tag("p", tag("b", spike_text(say, spike))) for spike in found["spikes"]),
    ]  # fmt: skip
    if found["num_sequences_hidden"]:
        hidden = say(
            "{n} sequences are hidden, in part at least, and left out.", n=f"{found['num_sequences_hidden']:,}"
        )
        parts.append(message_html(hidden, "warning"))
    parts += [
        _unusual_sequences(place, say, found["rows"]), _features(say, found["features"]), _sources(say, found),
        _documents(place, say, found["documents"]), _ngrams(place, say, found["ngrams"]),
    ]  # fmt: skip
    return joined(parts)


def spike_text(say: Say, spike: Json) -> str:
    """A spike in words."""
    return say(
        "{metric} {value}: {deviations} robust deviations above the expected {expected}", metric=say(NAMES[spike["metric"]]),
        value=number(spike["value"]), deviations=number(spike["deviations"]), expected=number(spike["expected"]),
    )  # fmt: skip


def number(value: float | str | None) -> str:
    """A metric to four digits; numbers that are none as they are."""
    if value is None:
        return "–"
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return str(value)


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{share:.1%}"


def _unusual_sequences(place: Place, say: Say, rows: Sequence[Json]) -> Html:
    title = tag("h3", say("Its sequences, the most unusual first"))
    if not rows:
        return title + tag("p", say("No sequence of the step is unusual."))
    items = []
    for row in rows:
        link = place.link(place.to("sequence", address=row["address"]), tag("code", row["address"]))
        reasons = [
            say(
                "{feature}: {value}, in the middle of the window {median}", feature=say(NAMES[reason["feature"]]),
                value=_value(reason["feature"], reason["value"]), median=_value(reason["feature"], reason["median"]),
            )
            for reason in row["reasons"][:REASONS]
        ]  # fmt: skip
        bits = tag("span", say("{n} bits of surprise", n=f"{row['score']:.0f}"), class_="dim")
        items.append(tag("li", link, " ", bits, tag("ul", *(tag("li", reason) for reason in reasons))))
    return title + tag("ol", *items, class_="spans unusual")


def _value(feature: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0%}" if feature.endswith("_share") else number(value)


def _features(say: Say, features: Sequence[Json]) -> Html:
    rows = [
        [
            say(NAMES[feature["name"]]), _value(feature["name"], feature["value"]),
            _value(feature["name"], feature["median"]),
            f"{_value(feature['name'], feature['low'])} – {_value(feature['name'], feature['high'])}",
            number(feature["deviations"]),
        ]
        for feature in features[:FEATURES]
    ]  # fmt: skip
    heads = [say("mean of"), say("step"), say("window"), say("5–95% of its steps"), say("deviations")]
    return tag("h3", say("The step in the mean")) + table_html(heads, rows) if rows else EMPTY


def _sources(say: Say, found: Json) -> Html:
    if not found["sources"]:
        return EMPTY
    rank = (
        say("The sources differ from the window more than those of any of its steps.")
        if found["source_rank"] == 0
        else say("The sources differ from the window as those of {n} of its steps do.", n=percent(found["source_rank"]))
    )
    rows = [
        [source["source"], percent(source["share"]), percent(source["window_share"])]
        for source in found["sources"][:SOURCES]
    ]
    heads = [say("source"), say("share of the step"), say("of the window")]
    return tag("h3", say("Sources")) + tag("p", rank) + table_html(heads, rows)


def _documents(place: Place, say: Say, documents: Sequence[Json]) -> Html:
    items = []
    for document in documents:
        name = one_line(f"{document['source']} / {document['document_id']}", 80)
        href = place.to("documents", source=document["source"], document=document["document_id"])
        numbers = say(
            "{tokens} tokens again, in {n} sequences of the step; {k} segments of the window",
            tokens=f"{document['num_tokens_again']:,}", n=f"{document['num_sequences']:,}",
            k=f"{document['window_num_segments']:,}",
        )  # fmt: skip
        items.append((place.link(href, name), numbers))
    return _list(say("Documents that the step or the window shows again"), items)


def _ngrams(place: Place, say: Say, ngrams: Sequence[Json]) -> Html:
    items = []
    for ngram in ngrams:
        ids = " ".join(map(str, ngram["token_ids"]))
        shown = one_line(ids if ngram["text"] is None else ngram["text"], 90) or "␣"
        numbers = say(
            "{n} times, expected {expected}, in {k} sequences", n=f"{ngram['count']:,}", expected=number(ngram["expected"]),
            k=f"{ngram['num_sequences']:,}",
        )  # fmt: skip
        items.append((place.link(place.to("search", q=f"ids:[{ids}]"), shown, title=say("Search for it")), numbers))
    return _list(say("N-grams that the step has too often"), items)


def _list(title: str, items: Sequence[tuple[Html, str]]) -> Html:
    """A list of links, and words below each."""
    if not items:
        return EMPTY
    listed = (tag("li", link, LINE_BREAK, tag("span", words, class_="dim")) for link, words in items)
    return tag("h3", title) + tag("ol", *listed, class_="spans")
