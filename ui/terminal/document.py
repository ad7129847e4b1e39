"""A document's exposures, as `kiseki document` prints them."""

from rich.text import Text

from indexer.documents.history import DocumentHistory, Exposure
from ui.terminal import console
from ui.terminal.trace import numbered, one_line, plural
from ui.terminal.visible import safe

__all__ = ["print_document", "print_document_summary"]

SHOWN_RANGES = 8


def print_document_summary(found: DocumentHistory) -> None:
    """How often and when, and how much of it."""
    steps = f"step {found.first_step}" if found.num_steps == 1 else f"steps {found.first_step}–{found.last_step}"
    console.output.print(
        Text.assemble(
            (safe(f"{found.source} / {found.document_id}"), "green"),
            f"\n{plural(found.num_exposures, 'exposure')} in {plural(found.num_steps, 'step')}, {steps}, "
            f"{numbered('rank', found.dp_ranks)}",
            f"\n{_extent(found)}",
        )
    )
    if len(found.ranges) > 1:
        shown = ", ".join(f"[{start:,}, {end:,})" for start, end in found.ranges[:SHOWN_RANGES])
        console.output.print(f"parts: {shown}{' …' if len(found.ranges) > SHOWN_RANGES else ''}", markup=False)


def print_document(found: DocumentHistory) -> None:
    """The summary, then an entry an exposure."""
    print_document_summary(found)
    for exposure in found.exposures:
        console.output.print(_exposure(exposure))
    if found.next is not None:
        console.output.print(Text(f"\nmore: --after {found.next}"), style="dim")
    for failure in found.failures:
        console.output.print(Text(safe(f"failed: {failure}")), style="red")


def _extent(found: DocumentHistory) -> str:
    if not found.end_token:
        return f"{found.num_tokens_seen:,} of its tokens seen; the export does not know where they stand in it"
    first = f"{found.num_tokens_distinct:,} of its first {found.end_token:,} tokens seen"
    return f"{first}, {found.num_tokens_seen:,} with repeats ({_times(found)})"


def _times(found: DocumentHistory) -> str:
    parts = [f"{tokens:,} {'once' if times == 1 else f'{times:,} times'}" for times, tokens in found.times_seen[:5]]
    return ", ".join(parts) + (" …" if len(found.times_seen) > 5 else "")


def _exposure(exposure: Exposure) -> Text:
    segment = exposure.segment
    offset = segment.document_token_offset
    part = f"[{offset:,}, {offset + segment.length:,})" if offset >= 0 else f"{segment.length:,} at an unknown place"
    new = "" if exposure.num_new_tokens == segment.length else f", {exposure.num_new_tokens:,} new"
    if exposure.num_new_tokens == 0:
        new = ", seen before" if offset >= 0 else ""
    state = "" if exposure.canonical else ", superseded"
    state += "" if exposure.status == "applied" else f", {exposure.status}"
    text = Text.assemble("\n", (str(exposure.address), "cyan"), f" at token {segment.start}: tokens {part}{new}{state}")
    if exposure.text is not None:
        text.append(f"\n    {one_line(exposure.text, 150)}", style="dim")
    return text
