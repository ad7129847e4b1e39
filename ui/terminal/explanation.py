"""An explanation of a step as text for a terminal or a pipe."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from indexer.steps.explain import StepExplanation
from ui.terminal.visible import safe

__all__ = ["print_explanation"]

FEATURES_SHOWN, SOURCES_SHOWN, REASONS_SHOWN = 6, 5, 4


def print_explanation(console: Console, found: StepExplanation) -> None:
    """What the step is, how it differs in the mean, its n-grams and documents, and the rows to look at."""
    superseded = "" if found.canonical else ", superseded"
    metrics = [
        f"{name} {value:.4g}"
        for name, value in (("loss", found.loss), ("grad norm", found.grad_norm))
        if value is not None
    ]
    console.print(
        f"step {found.global_step} of attempt {found.attempt} ({', '.join([found.status + superseded, *metrics])}), "
        f"{found.num_sequences:,} sequences, against steps {found.window_first_step}–{found.window_last_step}, "
        f"{found.window_num_sequences:,} sequences",
        style="bold",
    )
    if found.num_sequences_hidden:
        console.print(
            f"{found.num_sequences_hidden:,} sequences of the step are hidden, in part at least, and left out"
        )
    for spike in found.spikes:
        console.print(
            f"{spike.metric} {spike.value:.4g} is {spike.deviations:.0f} robust deviations above the expected "
            f"{spike.expected:.4g}",
            style="bold red",
        )
    _print_rows(console, found)
    _print_features(console, found)
    _print_sources(console, found)
    _print_documents(console, found)
    _print_ngrams(console, found)
    read = ""
    if found.num_sequences_read < found.num_sequences or found.window_num_sequences_read < found.window_num_sequences:
        read = (
            f"; tokens of {found.num_sequences_read:,} and {found.window_num_sequences_read:,} sequences were read for "
            "n-grams and probabilities"
        )
    console.print(f"\nrun {found.run_id}, generation {found.generation}{read}, {found.took_ms:.0f} ms", style="dim")


def _print_rows(console: Console, found: StepExplanation) -> None:
    console.print("\nrows to look at, the most unusual first:" if found.rows else "\nno row is unusual", style="bold")
    for row in found.rows:
        console.print(Text.assemble("  ", (row.address, "cyan"), f"  {row.score:.0f} bits"))
        for reason in row.reasons[:REASONS_SHOWN]:
            console.print(Text(f"      {reason.text}"))


def _print_features(console: Console, found: StepExplanation) -> None:
    console.print("\nthe step in the mean:", style="bold")
    table = Table(box=None, pad_edge=True, header_style="dim")
    for name in ("", "step", "window", "5–95% of its steps", "deviations"):
        table.add_column(name, justify="right" if name else "left")
    for feature in found.features[:FEATURES_SHOWN]:
        table.add_row(
            feature.name, f"{feature.value:.3g}", f"{feature.median:.3g}", f"{feature.low:.3g} – {feature.high:.3g}",
            f"{feature.deviations:+.1f}",
        )  # fmt: skip
    console.print(table)


def _print_sources(console: Console, found: StepExplanation) -> None:
    if not found.sources:
        return
    rank = (
        "more than any of its steps" if found.source_rank == 0 else f"as {100 * found.source_rank:.0f}% of its steps do"
    )
    console.print(f"\nsources differ from the window (G² {found.source_g2:.1f}), {rank}:", style="bold")
    for source in found.sources[:SOURCES_SHOWN]:
        console.print(
            Text.assemble(
                f"  {100 * source.share:5.1f}% of the step, {100 * source.window_share:5.1f}% of the window  ",
                (safe(source.source), "green"),
            )
        )


def _print_documents(console: Console, found: StepExplanation) -> None:
    if not found.documents:
        return
    console.print("\ndocuments that the step or the window shows again:", style="bold")
    for document in found.documents:
        console.print(
            Text.assemble(
                f"  {document.num_tokens_again:6,} tokens again, in {document.num_sequences} sequences of the step and "
                f"{document.window_num_segments} segments of the window  ",
                (safe(f"{document.source} / {document.document_id}"), "green"),
            )
        )


def _print_ngrams(console: Console, found: StepExplanation) -> None:
    if not found.ngrams:
        return
    console.print("\nn-grams that the step has too often:", style="bold")
    for ngram in found.ngrams:
        text = " ".join(map(str, ngram.token_ids)) if ngram.text is None else repr(safe(ngram.text))
        console.print(
            Text(
                f"  {ngram.count:6,} times, expected {ngram.expected:.1f}, in {ngram.num_sequences} sequences, "
                f"G² {ngram.g2:,.0f}  {text}"
            )
        )
