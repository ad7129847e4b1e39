"""A trace as text for a terminal or a pipe. Corpus text is printed as it is, never read as markup."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from indexer.answers.marked_text import pieces_with_one_mark
from indexer.trace.records import Hit, Span, Trace
from train_hooks.export_format.records import Segment
from ui.html.evidence import evidence_words, matched_words
from ui.html.texts import say_in
from ui.terminal.visible import safe

__all__ = ["numbered", "one_line", "plural", "print_sequence", "print_trace"]

_STYLES = ("bold black on bright_yellow", "bold black on yellow", "black on cyan")
_UNLISTED = "underline"


def print_trace(console: Console, trace: Trace) -> None:
    """The output with its spans marked, then each selected span with its exposures and hits, then the documents."""
    if not trace.spans:
        _print_no_match(console, trace)
        return
    listed = _listed(trace)
    console.print(_marked(trace, plain=not console.is_terminal))
    console.print()
    console.print(
        f"{plural(len(trace.spans), 'span')} of ≥ {trace.min_length} tokens, {trace.num_tokens_covered} of "
        f"{trace.num_tokens} tokens covered; the rarest:",
        style="dim",
    )
    for place, span in enumerate(listed, 1):
        _print_span(console, place, span)
    console.print()
    console.print("documents behind these spans:", style="bold")
    for document in trace.documents[:10]:
        console.print(
            Text.assemble(
                f"  {document.num_tokens:5d} tokens  ",
                (safe(f"{document.source} / {document.document_id}"), "green"),
                f"  in {plural(len(document.spans), 'span')}",
            )
        )
    for join in trace.joined[:5]:
        console.print(
            Text(
                f"  spans {join.first + 1} and {join.second + 1} of the text are one passage of {join.source} / "
                f"{join.document_id}, {join.num_tokens} tokens, which packing cut in two"
            )
        )
    _print_footer(console, trace)


def _listed(trace: Trace) -> list[Span]:
    selected = [span for span in trace.spans if span.rarity_rank is not None]
    return sorted(selected, key=lambda span: span.rarity_rank or 0)


def _print_no_match(console: Console, trace: Trace) -> None:
    console.print(Text(safe(trace.text)))
    console.print(
        f"\nno span of ≥ {trace.min_length} tokens of these {trace.num_tokens} occurs in the selected steps; "
        "try a smaller --min-length",
        style="dim",
    )
    _print_footer(console, trace)


def _print_footer(console: Console, trace: Trace) -> None:
    failed = f", {trace.shards_failed} failed" if trace.shards_failed else ""
    console.print(
        f"\nrun {trace.run_id}, generation {trace.generation}, {trace.shards_searched} of {trace.shards_total} shards "
        f"searched{failed}, {trace.took_ms:.1f} ms",
        style="dim",
    )
    for failure in trace.failures:
        console.print(Text(f"failed: {failure}"), style="red")


def _marked(trace: Trace, *, plain: bool) -> Text:
    """The text; a listed span carries its number. Where spans overlap, the later one begins a mark of its own."""
    text, whole = Text(), safe(trace.text)
    ranges = [
        None if span.char_start is None or span.char_end is None else (span.char_start, span.char_end)
        for span in trace.spans
    ]
    for piece in pieces_with_one_mark(len(whole), ranges):
        body = whole[piece.start : piece.end]
        if not piece.marks:
            text.append(body)
            continue
        rank = trace.spans[piece.marks[0]].rarity_rank
        number = None if rank is None else rank + 1
        if plain:
            text.append(f"⟦{'' if number is None else f'{number}: '}{body}⟧")
        else:
            style = _UNLISTED if number is None else _STYLES[min(len(_STYLES) - 1, (number - 1) // 2)]
            text.append(body, style=style)
            text.append("" if number is None else f"[{number}]", style="bold")
    return text


def _print_span(console: Console, place: int, span: Span) -> None:
    steps = (
        f"step {span.first_step}" if span.first_step == span.last_step else f"steps {span.first_step}–{span.last_step}"
    )
    ranks = "many ranks" if span.dp_ranks is None else numbered("rank", span.dp_ranks)
    times = "once" if span.count == 1 else f"{span.count:,} times"
    console.print()
    console.print(
        Text.assemble(
            (f"[{place}] ", "bold"), f"{span.num_tokens} tokens, seen {times}, {steps}, {ranks}: ",
            (one_line(span.text, 160), "bold"),
        )
    )  # fmt: skip
    for hit in span.hits:
        for line in _hit_lines(hit, span):
            console.print(line)
    left = span.count - len(span.hits)
    if left > 0:
        console.print(f"    … and {left:,} more", style="dim")


def _hit_lines(hit: Hit, span: Span) -> Iterator[Text]:
    where = " + ".join(_document(segment) for segment in hit.segments) or "document unknown"
    yield Text.assemble("    ", (str(hit.address), "cyan"), f" at token {hit.offset}  ", (where, "green"))
    before, after = one_line(hit.context_before, 70, keep_end=True), one_line(hit.context_after, 70)
    yield Text.assemble("      … ", (before, "dim"), (one_line(span.text, 60), "bold"), (after, "dim"), " …")


def _document(segment: Segment) -> str:
    return safe(f"{segment.source} / {segment.document_id}") if segment.document_id else "document unknown"


def plural(number: int, word: str) -> str:
    """A number and a word, in the singular for 1."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def numbered(word: str, numbers: tuple[int, ...]) -> str:
    """A word and numbers behind it, the first eight of them."""
    plural = "s" if len(numbers) != 1 else ""
    shown = ", ".join(str(number) for number in numbers[:8])
    return f"{word}{plural} {shown}{' …' if len(numbers) > 8 else ''}"


def one_line(text: str, width: int, *, keep_end: bool = False) -> str:
    """The text on one line of at most `width` characters, its beginning or its end."""
    line = "".join(character if character.isprintable() else "⏎" if character == "\n" else " " for character in text)
    line = re.sub(r" {2,}", " ", line)
    if len(line) <= width:
        return line
    return "…" + line[-width + 1 :] if keep_end else line[: width - 1] + "…"


def print_sequence(console: Console, sequence: Mapping[str, Any]) -> None:
    """A packed sequence as `IndexReader.describe` and `describe_row` give it: its segments, each under the name of its
    document."""
    console.print(Text.assemble((str(sequence["address"]), "cyan"), f"  {len(sequence['token_ids'])} tokens"))
    say = say_in("en")
    console.print(Text(f"evidence: {evidence_words(say, sequence['evidence'])}"), style="dim")
    console.print(Text(f"matched: {safe(matched_words(say, sequence['matched'], sequence['relation']))}"), style="dim")
    for segment in sequence["segments"]:
        end = segment["start"] + segment["length"]
        if segment["document_id"] is None:
            console.print(Text(f"\n[{segment['start']}, {end}) hidden", style="dim"))
            continue
        where = f"{segment['source']} / {segment['document_id']}" if segment["document_id"] else "document unknown"
        first = segment["document_token_offset"]
        offset = f" from token {first}" if first >= 0 else ""
        console.print(Text.assemble(f"\n[{segment['start']}, {end}) ", (safe(where), "green"), offset))
        console.print(_text_or_ids(segment["text"], sequence["token_ids"][segment["start"] : end]))
    if not sequence["segments"]:
        console.print(_text_or_ids(sequence["text"], sequence["token_ids"]))


def _text_or_ids(text: str | None, token_ids: Sequence[int | None]) -> Text:
    return Text(str(token_ids) if text is None else safe(text))
