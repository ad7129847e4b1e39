"""Exports held against a corpus."""

import shutil
from pathlib import Path

from indexer.corpora.reader import CorpusDocument, CorpusReader
from indexer.corpora.verify import collect_claims, compare_with_corpus
from indexer.corpora.verify_records import CorpusReport
from train_hooks.export_format.reading.reader import RunReader

__all__ = ["compare", "documents_of"]


def compare(run_dir: Path, corpus: Path, tokenizer: Path | None = None) -> CorpusReport:
    """What `kiseki export verify --corpus` finds."""
    claims_dir = run_dir.with_name("claims")
    shutil.rmtree(claims_dir, ignore_errors=True)
    claims_dir.mkdir()
    run = RunReader(run_dir)
    return compare_with_corpus(run, collect_claims(run, claims_dir), corpus, tokenizer=tokenizer)


def documents_of(corpus: Path) -> list[CorpusDocument]:
    """All documents of a corpus."""
    return list(CorpusReader(corpus).documents())
