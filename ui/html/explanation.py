"""What distinguishes a step, as HTML: its sequences, the most unusual first, its means, sources, documents and n-grams."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ui.html.coverage import failures_html
from ui.html.escape import one_line, text_html
from ui.html.messages import message_html
from ui.html.places import Place
from ui.html.texts import Say

__all__ = ["explanation_html", "number", "percent", "spike_text", "table_html"]

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


def explanation_html(place: Place, say: Say, found: Json) -> str:
    """All of it, for one step."""
    step = found["global_step"]
    close = place.link(place.here(step=None, attempt_of=None), text_html(say("close")))
    head = say(
        "Step {step} against steps {first} to {last}", step=f"{step:,}", first=f"{found['window_first_step']:,}",
        last=f"{found['window_last_step']:,}",
    )  # fmt: skip
    facts = [say("attempt {n}", n=found["attempt"]), say("{n} sequences", n=f"{found['num_sequences']:,}")]
    facts += [] if found["canonical"] else [say("superseded: a later attempt took up from before it")]
    facts += [f"{say(NAMES[name])} {number(found[name])}" for name in ("loss", "grad_norm") if found[name] is not None]
    parts = [
        f"<h2>{text_html(head)}</h2><p>{close}</p>", failures_html(say, found), f"<p>{text_html(', '.join(facts))}</p>",
        *(f"<p><b>{text_html(spike_text(say, spike))}</b></p>" for spike in found["spikes"]),
    ]  # fmt: skip
    if found["num_sequences_hidden"]:
        hidden = say(
            "{n} sequences are hidden, in part at least, and left out.", n=f"{found['num_sequences_hidden']:,}"
        )
        parts.append(message_html(hidden, "warning"))
    parts += [
        _rows(place, say, found["rows"]), _features(say, found["features"]), _sources(say, found),
        _documents(place, say, found["documents"]), _ngrams(place, say, found["ngrams"]),
    ]  # fmt: skip
    return "".join(parts)


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


def table_html(heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A table; cells are HTML already. The first `words` columns are words, the rest numbers."""
    kinds = ["" if column < words else ' class="num"' for column in range(len(heads))]
    head = "".join(f"<th{kind}>{text_html(text)}</th>" for kind, text in zip(kinds, heads, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _rows(place: Place, say: Say, rows: Sequence[Json]) -> str:
    title = f"<h3>{text_html(say('Its sequences, the most unusual first'))}</h3>"
    if not rows:
        return title + f"<p>{text_html(say('No sequence of the step is unusual.'))}</p>"
    items = []
    for row in rows:
        link = place.link(place.to("sequence", address=row["address"]), f"<code>{text_html(row['address'])}</code>")
        reasons = "".join(
            "<li>"
            + text_html(
                say(
                    "{feature}: {value}, in the middle of the window {median}", feature=say(NAMES[reason["feature"]]),
                    value=_value(reason["feature"], reason["value"]), median=_value(reason["feature"], reason["median"]),
                )
            )
            + "</li>"
            for reason in row["reasons"][:REASONS]
        )  # fmt: skip
        bits = text_html(say("{n} bits of surprise", n=f"{row['score']:.0f}"))
        items.append(f'<li>{link} <span class="dim">{bits}</span><ul>{reasons}</ul></li>')
    return title + f'<ol class="spans unusual">{"".join(items)}</ol>'


def _value(feature: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0%}" if feature.endswith("_share") else number(value)


def _features(say: Say, features: Sequence[Json]) -> str:
    rows = [
        [
            text_html(say(NAMES[feature["name"]])), _value(feature["name"], feature["value"]),
            _value(feature["name"], feature["median"]),
            f"{_value(feature['name'], feature['low'])} – {_value(feature['name'], feature['high'])}",
            number(feature["deviations"]),
        ]
        for feature in features[:FEATURES]
    ]  # fmt: skip
    heads = [say("mean of"), say("step"), say("window"), say("5–95% of its steps"), say("deviations")]
    return f"<h3>{text_html(say('The step in the mean'))}</h3>" + table_html(heads, rows) if rows else ""


def _sources(say: Say, found: Json) -> str:
    if not found["sources"]:
        return ""
    rank = (
        say("The sources differ from the window more than those of any of its steps.")
        if found["source_rank"] == 0
        else say("The sources differ from the window as those of {n} of its steps do.", n=percent(found["source_rank"]))
    )
    rows = [
        [text_html(source["source"]), percent(source["share"]), percent(source["window_share"])]
        for source in found["sources"][:SOURCES]
    ]
    heads = [say("source"), say("share of the step"), say("of the window")]
    return f"<h3>{text_html(say('Sources'))}</h3><p>{text_html(rank)}</p>" + table_html(heads, rows)


def _documents(place: Place, say: Say, documents: Sequence[Json]) -> str:
    items = []
    for document in documents:
        name = text_html(one_line(f"{document['source']} / {document['document_id']}", 80))
        href = place.to("documents", source=document["source"], document=document["document_id"])
        numbers = say(
            "{tokens} tokens again, in {n} sequences of the step; {k} segments of the window",
            tokens=f"{document['num_tokens_again']:,}", n=f"{document['num_sequences']:,}",
            k=f"{document['window_num_segments']:,}",
        )  # fmt: skip
        items.append((place.link(href, name), numbers))
    return _list(say("Documents that the step or the window shows again"), items)


def _ngrams(place: Place, say: Say, ngrams: Sequence[Json]) -> str:
    items = []
    for ngram in ngrams:
        ids = " ".join(map(str, ngram["token_ids"]))
        shown = text_html(one_line(ids if ngram["text"] is None else ngram["text"], 90)) or "␣"
        numbers = say(
            "{n} times, expected {expected}, in {k} sequences", n=f"{ngram['count']:,}", expected=number(ngram["expected"]),
            k=f"{ngram['num_sequences']:,}",
        )  # fmt: skip
        items.append((place.link(place.to("search", q=f"ids:[{ids}]"), shown, title=say("Search for it")), numbers))
    return _list(say("N-grams that the step has too often"), items)


def _list(title: str, items: Sequence[tuple[str, str]]) -> str:
    """A list of links, HTML already, and words below each."""
    if not items:
        return ""
    listed = "".join(f'<li>{link}<br><span class="dim">{text_html(words)}</span></li>' for link, words in items)
    return f'<h3>{text_html(title)}</h3><ol class="spans">{listed}</ol>'
