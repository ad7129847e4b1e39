"""From a published corpus to an export, a trace, and back to the source text: what holds, and how it may not."""

import gzip
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from indexer.build.update import update_index
from indexer.corpora.claims import Claims
from indexer.corpora.reader import CorpusReader
from indexer.corpora.source_text import source_text
from indexer.corpora.verify_records import Reason
from indexer.documents.history import document_history
from indexer.reader import IndexReader
from indexer.trace.trace import TraceOptions, trace
from tests.conftest import PEAK_KIB
from tests.indexer.corpora.comparing import compare, documents_of
from tests.indexer.corpora.exported import LENGTH, VOCABULARY, export_documents, save_tokenizer
from tests.indexer.corpora.published import CORPORA, texts, write_lines
from tests.support.export_maker import MadeStep, all_rows, make_attempt
from train_hooks import Segment
from train_hooks.export_format.acknowledgement import ack_size
from train_hooks.export_format.errors import IncompleteError, InputError, RunError
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec


@pytest.fixture
def dolma(tmp_path: Path) -> tuple[Path, Path, Path]:
    """(run directory, corpus, tokenizer) of an export that holds."""
    corpus = tmp_path / "corpus"
    CORPORA["dolma"](corpus, texts())
    tokenizer = save_tokenizer(tmp_path / "tokenizer.json", texts())
    export_documents(tmp_path / "run", documents_of(corpus), tokenizer)
    return tmp_path / "run", corpus, tokenizer


@pytest.mark.parametrize("layout", CORPORA)
def test_from_file_to_export_to_trace_to_source_text(layout: str, tmp_path: Path) -> None:
    corpus, run_dir = tmp_path / "corpus", tmp_path / "run"
    CORPORA[layout](corpus, texts())
    documents = documents_of(corpus)
    export_documents(run_dir, documents, save_tokenizer(tmp_path / "tokenizer.json", texts()))
    report = compare(run_dir, corpus)
    num_segments = sum(len(row.segments) for row in all_rows(run_dir))
    assert (report.num_segments, report.num_equal, report.exit_code) == (num_segments, num_segments, 0)
    assert report.num_tokens_equal == sum(segment.length for row in all_rows(run_dir) for segment in row.segments)
    assert dict(report.ways) == {"special tokens spelled out in it as text": dict(report.ways).popitem()[1]}
    assert report.findings == () and report.num_records == len(documents)

    update_index(run_dir)
    reader = IndexReader.open(run_dir)
    names = Counter((document.source, document.document_id) for document in documents)
    for document in documents:
        history = document_history(reader, document.source, document.document_id, limit=1000)
        found = source_text(reader, corpus, document.source, document.document_id, history.exposures)
        assert "".join(part.text for part in found.parts) == document.text or names[document.names[0]] > 1
        if names[document.names[0]] == 1:
            assert found.num_different == 0 and found.text_sha256 == document.text_sha256
            assert found.place == f"{document.file}#{document.number}"
            assert all(part.num_exposures == 1 for part in found.parts)
        passage = document.text[:120]
        if len(passage) > 60 and "\x00" not in passage and "<|" not in passage:
            traced = trace(reader, passage, options=TraceOptions(min_length=6))
            assert any((item.source, item.document_id) == document.names[0] for item in traced.documents)


@pytest.mark.parametrize("layout", CORPORA)
def test_each_changed_byte_of_a_text_is_found(layout: str, tmp_path: Path) -> None:
    """Every text in turn is given one other character, early, in the midst, or at its end."""
    items = [text for text in texts() if text]
    tokenizer = save_tokenizer(tmp_path / "tokenizer.json", items)
    CORPORA[layout](tmp_path / "corpus", items)
    export_documents(tmp_path / "run", documents_of(tmp_path / "corpus"), tokenizer)
    twins = {"llm-jp": (2, 3), "fineweb": (0, 1)}.get(layout, ())  # records of one id, of which either will do
    for number, text in list(enumerate(items))[:: 1 if layout == "dolma" else 4]:
        if number in twins:
            continue
        at = (0, len(text) // 2, len(text) - 1)[number % 3]
        edited = text[:at] + ("\u0430" if text[at] == "a" else "a") + text[at + 1 :]
        changed = tmp_path / f"changed-{number}"
        CORPORA[layout](changed, [*items[:number], edited, *items[number + 1 :]])
        report = compare(tmp_path / "run", changed)
        assert report.exit_code == (3 if report.num_missing else 1) and report.num_equal < report.num_segments, number
        if report.num_different:
            finding = report.findings[0]
            assert finding.reason in (Reason.EDITED_TEXT, Reason.OTHER_PLACE)
            assert edited in {d.text for d in documents_of(changed) if f"{d.file}#{d.number}" == finding.place}


def test_the_edit_is_shown(dolma: tuple[Path, Path, Path]) -> None:
    run_dir, corpus, _ = dolma
    file = corpus / "cc_en_head/cc_en_head-0000.json.gz"
    records = [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().split("\n")[:-1]]
    text = records[0]["text"]
    place = text.index(" ", len(text) // 2)
    records[0]["text"] = text[:place] + " EDITED" + text[place:]
    write_lines(file, records)
    report = compare(run_dir, corpus)
    first, *others = sorted(report.findings, key=lambda finding: finding.document_token_offset)
    assert (
        first.reason is Reason.EDITED_TEXT and first.place == f"cc_en_head/{file.name}#1" and "EDITED" in first.message
    )
    assert {finding.document_id for finding in report.findings} == {first.document_id}
    assert others and all(finding.reason is Reason.OTHER_PLACE for finding in others)
    before = [row for row in all_rows(run_dir) for segment in row.segments if segment.document_id == first.document_id]
    assert report.num_different == len(report.findings) < len(before)
    records[0]["text"] = text[:place]
    write_lines(file, records)
    report = compare(run_dir, corpus)
    assert any("the document ends at its token" in finding.message for finding in report.findings)


def test_missing_documents_and_files(dolma: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run_dir, corpus, _ = dolma
    (corpus / "cc_en_head/cc_en_head-0001.json.gz").rename(tmp_path / "cc_en_head-0001.json.gz")
    report = compare(run_dir, corpus)
    assert report.exit_code == 3 and report.num_missing and not report.num_different
    assert {finding.reason for finding in report.findings} == {Reason.MISSING_FILE}
    assert "cc_en_head/cc_en_head-0001.json.gz is not in the corpus" in report.findings[0].message
    assert len(report.findings) == 1 < report.num_documents_missing
    below = compare(run_dir, corpus / "cc_en_head")
    assert below.num_equal == 0 and any(
        "is called cc_en_head-0000.json.gz here" in finding.message for finding in below.findings
    )
    shutil.copy(tmp_path / "cc_en_head-0001.json.gz", corpus / "cc_en_head/cc_en_head-0003.json.gz")
    assert compare(run_dir, corpus).missing_files == (
        "cc_en_head/cc_en_head-0001.json.gz",
        "cc_en_head/cc_en_head-0002.json.gz",
    )
    file = corpus / "cc_en_head/cc_en_head-0000.json.gz"
    lines = gzip.decompress(file.read_bytes()).split(b"\n")
    lines[2] = lines[2][:-9]
    file.write_bytes(gzip.compress(b"\n".join(lines)))
    report = compare(run_dir, corpus)
    assert report.num_problems == 1 and report.problems[0].startswith(
        "cc_en_head/cc_en_head-0000.json.gz line 3: expected a JSON"
    )
    assert Reason.MISSING_DOCUMENT in {finding.reason for finding in report.findings}


def test_other_tokenizer(dolma: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run_dir, corpus, tokenizer = dolma
    other = save_tokenizer(tmp_path / "other.json", texts(), 700)
    report = compare(run_dir, corpus, other)
    assert report.exit_code == 1 and report.tokenizer_sha256 != report.run_tokenizer_sha256
    reasons = Counter(finding.reason for finding in report.findings)
    assert reasons[Reason.OTHER_TOKENIZER] > sum(reasons.values()) * 0.8
    assert compare(run_dir, corpus, tokenizer).exit_code == 0
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(RunError, match=r"broken\.json: expected a tokenizer\.json"):
        compare(run_dir, corpus, tmp_path / "broken.json")


def test_a_step_that_one_rank_lacks_claims_nothing(dolma: tuple[Path, Path, Path]) -> None:
    """Another rank wrote it before the crash: no forward of it counts, and what it says is not compared."""
    run_dir, corpus, tokenizer = dolma
    before, last = compare(run_dir, corpus), max(row.address.global_step for row in all_rows(run_dir))
    source, document_id = documents_of(corpus)[0].names[0]
    wrong = Segment(start=0, length=LENGTH, source=source, document_id=document_id, document_token_offset=0)
    step = MadeStep(
        microbatches={rank: [np.ones((1, LENGTH), np.int64)] for rank in range(2)},
        segments={rank: [[[wrong]]] for rank in range(2)},
    )
    spec = RunSpec(sequence_length=LENGTH, vocab_size=VOCABULARY, run_id="corpus", config={}, tokenizer=tokenizer)
    resume = ResumeToken(run_id="corpus", attempt=1, global_step=last)
    make_attempt(run_dir, spec, [step], num_writers=2, resume=resume, close=False)
    assert compare(run_dir, corpus).num_different == 2
    (acknowledgements,) = run_dir.glob("export/attempts/a000002/rows-r00001-*.acks.inprogress")
    acknowledgements.write_bytes(acknowledgements.read_bytes()[: -ack_size(3)])
    assert compare(run_dir, corpus) == before


def test_a_document_is_looked_for_in_its_own_file(tmp_path: Path) -> None:
    """Of a large corpus, one file is read, not all that come before it; all of them where the id names none."""
    corpus, run_dir = tmp_path / "corpus", tmp_path / "run"
    for layout, number in (("pile", -1), ("dclm", 0)):
        CORPORA[layout](corpus / layout, texts())
        documents = documents_of(corpus / layout)
        tokenizer = save_tokenizer(tmp_path / "tokenizer.json", texts())
        export_documents(run_dir / layout, documents, tokenizer)
        update_index(run_dir / layout)
        reader, document = IndexReader.open(run_dir / layout), documents[number]
        exposures = document_history(reader, *document.names[0], limit=1000).exposures
        read: list[tuple[int, int]] = []
        found = source_text(
            reader, corpus / layout, *document.names[0], exposures, progress=lambda *done, read=read: read.append(done)
        )
        assert found.place == f"{document.file}#{document.number}" and found.num_different == 0
        assert read[-1] == (
            (corpus / layout / document.file).stat().st_size,
            sum(file.size_bytes for file in CorpusReader(corpus / layout).files),
        )


def test_offsets_that_the_export_does_not_know(dolma: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, corpus, _ = dolma
    original = Claims.finish

    def forget(claims: Claims) -> None:
        original(claims)
        for found in claims.files():
            found["offset"] = -1

    monkeypatch.setattr(Claims, "finish", forget)
    assert compare(run_dir, corpus).exit_code == 0
    CORPORA["dolma"](corpus, [text.upper() for text in texts()])
    report = compare(run_dir, corpus)
    assert report.exit_code == 1 and report.num_different > report.num_segments * 0.7


def test_a_corpus_that_is_none(dolma: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a corpus at"):
        compare(dolma[0], tmp_path / "nothing")
    update_index(dolma[0])
    reader = IndexReader.open(dolma[0])
    document = documents_of(dolma[1])[0]
    exposures = document_history(reader, document.source, document.document_id).exposures
    write_lines(tmp_path / "other/a.jsonl", [{"id": "x", "text": "y", "source": "z"}])
    with pytest.raises(IncompleteError, match="has no document"):
        source_text(reader, tmp_path / "other", document.source, document.document_id, exposures)


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Comparing 60 MB of text takes a few MB more than comparing 6 MB: peak memory of real processes."""
    tokenizer = save_tokenizer(tmp_path / "tokenizer.json", texts())
    write_lines(tmp_path / "few/a.jsonl.gz", [{"id": "1", "text": "some words " * 20, "source": "s"}])
    export_documents(tmp_path / "run", documents_of(tmp_path / "few"), tokenizer)
    record = {"text": "some words " * 1000, "source": "s"}
    write_lines(tmp_path / "large/a.jsonl.gz", [record | {"id": str(number)} for number in range(550)])
    write_lines(tmp_path / "huge/a.jsonl.gz", [record | {"id": str(number)} for number in range(5500)])
    program = """
import sys, tempfile
from pathlib import Path
from indexer.corpora.verify import collect_claims, compare_with_corpus
from train_hooks.export_format.reading.reader import RunReader
run = RunReader(sys.argv[1])
with tempfile.TemporaryDirectory() as directory:
    compare_with_corpus(run, collect_claims(run, Path(directory)), Path(sys.argv[2]))
"""
    program += f"print({PEAK_KIB})"
    peaks = [
        int(subprocess.run(
            [sys.executable, "-c", program, tmp_path / "run", tmp_path / size], check=True, capture_output=True, timeout=120
        ).stdout)
        for size in ("large", "huge")
    ]  # fmt: skip
    assert peaks[1] - peaks[0] < 20_000, peaks


def test_each_missing_file_is_named_once(tmp_path: Path) -> None:
    """However many documents it has, so that the others are named too; also where ids do not end with a line's number."""
    for layout, name in (
        ("pile", "train/{:02d}.jsonl.zst"),
        ("redpajama-v2", "documents/2023-06/{:04d}/en_head.json.gz"),
    ):
        corpus, run_dir = tmp_path / layout / "corpus", tmp_path / layout / "run"
        items = texts()
        CORPORA[layout](corpus, items)
        export_documents(run_dir, documents_of(corpus), save_tokenizer(tmp_path / "tokenizer.json", items))
        gone = name.format(0)
        (corpus / gone).rename(tmp_path / "elsewhere")
        report = compare(run_dir, corpus)
        assert report.exit_code == 3 and report.num_documents_missing > 1
        (finding,) = report.findings
        assert finding.reason is Reason.MISSING_FILE and gone.removeprefix("documents/") in finding.message
        assert "is not in the corpus" in finding.message
