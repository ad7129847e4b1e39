"""The answer to a search as text for a terminal or a pipe."""

from rich.console import Console
from rich.text import Text

from indexer.answers.marked_text import pieces_with_one_mark
from indexer.search.records import Facets, SearchHit, SearchResult, Snippet
from ui.terminal.visible import safe

__all__ = ["print_hit", "print_search"]

BAR = 40


def print_search(console: Console, result: SearchResult) -> None:
    """The hits with their snippets, then the facets where they were asked for, then what was searched."""
    at_least = "at least " if result.count_relation == "gte" else ""
    console.print(f"{at_least}{result.count:,} segment{'' if result.count == 1 else 's'}", style="bold")
    for hit in result.hits:
        print_hit(console, hit)
    if result.facets is not None and result.facets.step_edges:
        _print_facets(console, result.facets)
    _print_footer(console, result)


def print_hit(console: Console, hit: SearchHit) -> None:
    """Where the hit is, and its snippet."""
    console.print()
    console.print(_title(hit))
    if hit.snippet is not None:
        console.print(_marked(hit.snippet, plain=not console.is_terminal))


def _title(hit: SearchHit) -> Text:
    segment = hit.segment
    named = segment is not None and bool(segment.source or segment.document_id)
    where = f"{segment.source} / {segment.document_id}" if segment is not None and named else "document unknown"
    score = "" if hit.score is None else f"  {hit.score:.2f}"
    return Text.assemble(
        (str(hit.address), "cyan"),
        f" tokens [{hit.start}, {hit.end})  ",
        (_one_line(where), "green"),
        (score, "dim"),
    )


def _marked(snippet: Snippet, *, plain: bool) -> Text:
    """The snippet in one line, its highlights in colour, or between ⟦ and ⟧ where there is none."""
    text = Text("  … ")
    highlights = [(start - snippet.start, end - snippet.start) for start, end in snippet.highlights]
    for piece in pieces_with_one_mark(len(snippet.text), highlights):
        body = _one_line(snippet.text[piece.start : piece.end])
        if not piece.marks:
            text.append(body)
        elif plain:
            text.append(f"⟦{body}⟧")
        else:
            text.append(body, style="bold black on bright_yellow")
    text.append(" …")
    return text


def _one_line(text: str) -> str:
    return "".join(
        character if character.isprintable() else "⏎" if character == "\n" else " " if character == "\t" else "\ufffd"
        for character in safe(text)
    )


def _print_facets(console: Console, facets: Facets) -> None:
    console.print("\nsources", style="bold")
    for found in facets.sources[:20]:
        console.print(Text.assemble(f"  {found.count:10,}  ", (_one_line(str(found.value)), "green")))
    if facets.truncated or len(facets.sources) > 20:
        console.print("         … and more", style="dim")
    console.print("\nsteps", style="bold")
    most = max(facets.steps, default=0)
    for first, after, count in zip(facets.step_edges, facets.step_edges[1:], facets.steps, strict=False):
        bar = "█" * (-(-BAR * count // most) if most else 0)
        console.print(Text.assemble(f"  {count:10,}  ", f"{first}..{after}".ljust(22), (bar, "cyan")))
    console.print("\ndata-parallel ranks", style="bold")
    for found in sorted(facets.dp_ranks, key=lambda found: found.value)[:64]:
        console.print(f"  {found.count:10,}  {found.value}")


def _print_footer(console: Console, result: SearchResult) -> None:
    failed = f", {result.shards_failed} failed" if result.shards_failed else ""
    console.print(
        f"\nrun {result.run_id}, generation {result.generation}, {result.shards_searched} of {result.shards_total} shards "
        f"searched{failed}, {result.took_ms:.1f} ms",
        style="dim",
    )
    if result.next_cursor is not None:
        console.print(f"next page: --cursor {result.next_cursor}", style="dim")
    for failure in result.failures:
        console.print(Text(f"failed: {failure}"), style="red")
