"""`kiseki export verify RUN --corpus`: an export held against its source texts, and how the outcome is printed."""

import tempfile
from pathlib import Path
from typing import Any

from rich.text import Text

from indexer.answers.plain_data import plain_data
from indexer.corpora.source_text import SourceText, TextPart
from indexer.corpora.verify import collect_claims, compare_with_corpus
from indexer.corpora.verify_records import CorpusFinding, CorpusReport, Reason
from train_hooks.export_format.reading.reader import RunReader
from ui.terminal import console
from ui.terminal.trace import plural
from ui.terminal.visible import safe

__all__ = ["corpus_report_json", "print_corpus_report", "print_source_text", "verify_with_corpus"]

_STYLES = {Reason.MISSING_DOCUMENT: "yellow", Reason.MISSING_FILE: "yellow"}
SHOWN_FILES, SHOWN_STEPS = 5, 20


def verify_with_corpus(run: Path, corpus: Path, tokenizer: Path | None) -> CorpusReport:
    """Compare, with progress on standard error."""
    reader = RunReader(run)
    with tempfile.TemporaryDirectory(prefix="kiseki-claims-") as directory:
        with console.progress("reading the export's steps") as progress:
            claims = collect_claims(reader, Path(directory), progress=progress)
        with console.progress("reading the corpus's bytes") as progress:
            return compare_with_corpus(reader, claims, corpus, tokenizer=tokenizer, progress=progress)


def corpus_report_json(report: CorpusReport) -> dict[str, Any]:
    """Plain data."""
    return {**plain_data(report), "exit_code": report.exit_code}


def print_corpus_report(report: CorpusReport) -> None:
    """Findings, what could not be read, then the verdict."""
    for finding in report.findings:
        console.output.print(_finding(finding))
    for problem in report.problems:
        console.errors.print(Text(safe(problem)))
    if report.num_problems > len(report.problems):
        console.errors.print(f"… and {report.num_problems - len(report.problems):,} more", markup=False)
    if report.missing_files:
        shown = ", ".join(report.missing_files[:SHOWN_FILES]) + (
            " …" if len(report.missing_files) > SHOWN_FILES else ""
        )
        console.output.print(Text(safe(f"note       by their numbers, files seem to be missing: {shown}")), style="dim")
    if report.num_unnamed:
        console.output.print(f"note       {plural(report.num_unnamed, 'segment')} without a document: identity unknown")
    for how, number in report.ways:
        console.output.print(f"note       {plural(number, 'segment')} of texts tokenized with {how}", markup=False)
    if report.tokenizer_sha256 != report.run_tokenizer_sha256:
        console.output.print(Text(f"note       {_tokenizers(report)}"), style="dim")
    console.output.print(_verdict(report), markup=False)


def _finding(finding: CorpusFinding) -> Text:
    where = f"{finding.address} at token {finding.start}"
    place = "" if finding.place is None else f" ({finding.place})"
    return Text.assemble(
        (f"{finding.reason.value:10} ", _STYLES.get(finding.reason, "bold red")),
        (safe(f"{finding.source} / {finding.document_id}{place}"), "green"),
        safe(f", {where}: {finding.message}"),
    )


def _tokenizers(report: CorpusReport) -> str:
    if report.run_tokenizer_sha256 is None:
        return f"compared with tokenizer {report.tokenizer_sha256[:16]}…; the run has none of its own"
    return (
        f"compared with tokenizer {report.tokenizer_sha256[:16]}…, the run was exported with "
        f"{report.run_tokenizer_sha256[:16]}…"
    )


def _verdict(report: CorpusReport) -> str:
    if not report.num_segments:
        return "the export names no documents: there is nothing to compare"
    parts = [f"{report.num_equal:,} of {report.num_segments:,} segments are what their texts give"]
    if report.num_different:
        parts.append(f"{report.num_different:,} DIFFER")
    if report.num_missing:
        parts.append(f"{report.num_missing:,} of {plural(report.num_documents_missing, 'document')} have no text here")
    held = f"{report.num_tokens_equal:,} tokens of {plural(report.num_documents_equal, 'document')} hold"
    read = f"{plural(report.num_records, 'record')} in {plural(len(report.files), 'file')} read"
    return f"the corpus: {', '.join(parts)}; {held}, {read}"


def print_source_text(text: SourceText) -> None:
    """The whole text, cut where exposures begin and end, each part under the steps that saw it."""
    console.output.print(
        Text(
            safe(f"source: {text.place}, {text.num_tokens:,} tokens, text SHA-256 {text.text_sha256[:16]}…"),
            style="dim",
        )
    )
    if text.num_different:
        console.output.print(
            f"{plural(text.num_different, 'exposure')} of {text.num_exposures:,} not what this text gives; "
            "`kiseki export verify RUN --corpus` says why",
            style="bold red",
        )
    for part in text.parts:
        console.output.print(Text(f"\n── tokens [{part.start:,}, {part.end:,}): {_seen(part)}", style="cyan"))
        console.output.print(Text(safe(part.text), style="" if part.steps else "dim"))


def _seen(part: TextPart) -> str:
    if not part.steps:
        return "not seen"
    shown = ", ".join(f"{step:,}" for step in part.steps[:SHOWN_STEPS]) + (
        " …" if len(part.steps) > SHOWN_STEPS else ""
    )
    times = "once" if part.num_exposures == 1 else f"{part.num_exposures:,} times"
    return f"seen {times}, step{'s' if len(part.steps) > 1 else ''} {shown}"
