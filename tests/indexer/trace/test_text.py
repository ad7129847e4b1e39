"""Tracing text: word position, documents, checkpoints, what is refused."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from indexer.build.update import IndexOptions, update_index
from indexer.reader import IndexReader
from indexer.selection.rows import Selection
from indexer.trace.counts import count_of_ngram
from indexer.trace.trace import TraceOptions, trace
from tests.conftest import TextRun
from tests.support.export_maker import all_rows
from train_hooks.export_format.errors import DamageError, IncompleteError, KisekiError, QueryError, RunError
from train_hooks.export_format.records import SequenceAddress


@pytest.fixture(scope="module")
def reader(text_run: TextRun) -> IndexReader:
    return IndexReader.open(text_run.run_dir)


def test_several_shards_were_built(reader: IndexReader) -> None:
    assert len(reader.shards) >= 4


def test_verbatim_text_is_found_with_its_document(reader: IndexReader, text_run: TextRun) -> None:
    (source, document_id), text = list(text_run.documents.items())[3]
    passage = text[10:150]
    found = trace(reader, "Something before. " + passage, options=TraceOptions(num_hits=10, max_spans=100))
    span = max(found.spans, key=lambda span: span.num_tokens)
    assert span.text in passage
    assert span.count >= 2 and span.last_step - span.first_step >= text_run.num_steps // 2 - 2
    assert {(s.source, s.document_id) for hit in span.hits for s in hit.segments} == {(source, document_id)}
    for hit in span.hits:
        sequence = reader.sequence(hit.address)
        assert sequence.tokens[hit.offset : hit.offset + span.num_tokens].tolist() == list(span.token_ids)
        assert hit.context_before + span.text + hit.context_after in reader.tokenizer.decode(sequence.tokens)
        inside = text.encode().find(span.text.encode())
        assert hit.document_token_offset is not None and inside >= 0
    assert (found.documents[0].source, found.documents[0].document_id) == (source, document_id)


def test_first_word_matches_in_the_middle_of_training_text(reader: IndexReader, text_run: TextRun) -> None:
    text = list(text_run.documents.values())[3]
    middle = text[text.index(" ", 30) + 1 :][:60]
    assert middle[0].isalpha()
    found = trace(reader, middle, options=TraceOptions(min_length=3, max_spans=100))
    first = min(found.spans, key=lambda span: span.char_start or 0)
    assert first.char_start == 0, "the word after a space is another token; the trace tries both"


def test_before_step_is_what_a_checkpoint_had_seen(reader: IndexReader, text_run: TextRun) -> None:
    passage = next(iter(text_run.documents.values()))[:120]
    everything = max(trace(reader, passage).spans, key=lambda span: span.num_tokens)
    half = text_run.num_steps // 2
    early = trace(reader, passage, options=TraceOptions(selection=Selection(before_step=half + 1)))
    assert max(early.spans, key=lambda span: span.num_tokens).count * 2 == everything.count
    assert all(span.last_step <= half for span in early.spans)
    none = trace(reader, passage, options=TraceOptions(selection=Selection(before_step=1)))
    assert none.spans == () and none.shards_searched == 0


def test_text_without_match(reader: IndexReader) -> None:
    found = trace(reader, "zzqx vvkw qqjj xyzzy plugh 0987")
    assert found.spans == () and found.num_tokens_covered == 0 and not found.truncated


def test_token_ids_are_the_same_as_their_text(reader: IndexReader, text_run: TextRun) -> None:
    passage = next(text for (source, _), text in text_run.documents.items() if source == "tatoeba-ja")[:60]
    by_text = trace(reader, passage)
    by_ids = trace(reader, token_ids=reader.tokenizer.encode(passage).token_ids.tolist())
    assert by_ids.text == passage
    assert by_ids.num_tokens_covered > 0
    assert [s.token_ids for s in by_ids.spans] == [s.token_ids for s in by_text.spans]


@pytest.mark.parametrize(
    ("text", "ids", "message"),
    [
        ("", None, "found none"),
        (" \n\t", None, "found none"),
        (None, [], "found none"),
        (None, [1, 2_000], "vocabulary"),
        (None, [-1], "vocabulary"),
        (None, None, "either"),
        ("a", [1], "either"),
        ("a b " * 60_000, None, "at most 100000"),
    ],
)
def test_bad_input_is_named(reader: IndexReader, text: str | None, ids: list[int] | None, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        trace(reader, text, token_ids=ids)


@pytest.mark.parametrize("options", [{"min_length": 0}, {"num_hits": 101}, {"max_spans": -1}, {"context_tokens": 9999}])
def test_options_have_limits(options: dict[str, int]) -> None:
    with pytest.raises(QueryError, match="expected"):
        TraceOptions(**options)  # type: ignore[arg-type]


def test_addresses(reader: IndexReader) -> None:
    address = SequenceAddress(run_id="text", attempt=1, global_step=3, dp_rank=1, microbatch=0, slot=1)
    found = reader.sequence(str(address))
    assert found.address == address and len(found.tokens) == 64 and sum(s.length for s in found.segments) == 64
    for wrong in ("text/a1/s3/r7/m0/q1", "other/a1/s3/r1/m0/q1", "text/a2/s3/r1/m0/q1"):
        with pytest.raises(QueryError, match="holds no sequence"):
            reader.sequence(wrong)


def test_not_a_run_and_not_indexed(tmp_path_factory: pytest.TempPathFactory, text_run: TextRun) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        IndexReader.open(tmp_path_factory.mktemp("empty"))
    bare = tmp_path_factory.mktemp("bare")
    (bare / "export").symlink_to(text_run.run_dir / "export")
    with pytest.raises(IncompleteError, match="kiseki index"):
        IndexReader.open(bare)


@pytest.fixture
def copied_run(text_run: TextRun, tmp_path: Path) -> Path:
    shutil.copytree(text_run.run_dir, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def test_a_changed_token_is_never_returned_and_is_mended(copied_run: Path) -> None:
    reader = IndexReader.open(copied_run)
    shard = reader.shards[0]
    spans, tokens = shard.directory / "spans.bin", shard.tokens(5).copy()
    data = bytearray(spans.read_bytes())
    data[data.find(tokens.tobytes()) + 40] ^= 1
    spans.write_bytes(data)
    damaged = IndexReader.open(copied_run)
    with pytest.raises(DamageError, match="leaf"):
        damaged.sequence_at(damaged.shards[0], 5)
    with pytest.raises(DamageError, match=r"spans\.bin"):
        damaged.shards[0].check_hashes()
    assert np.array_equal(damaged.sequence_at(damaged.shards[0], 6).tokens, reader.sequence_at(shard, 6).tokens)
    found = trace(damaged, token_ids=tokens.tolist()[:20], options=TraceOptions(min_length=4))
    assert found.shards_failed == 1 and shard.info.name in found.failures[0]
    assert all(span.count_relation == "gte" for span in found.spans)
    assert all(hit.address.global_step > shard.info.last_step for span in found.spans for hit in span.hits)
    assert update_index(copied_run, IndexOptions(verify=True, shard_tokens=5000)).published
    mended = trace(IndexReader.open(copied_run), token_ids=tokens.tolist()[:20], options=TraceOptions(min_length=4))
    assert mended.shards_failed == 0 and mended.spans[0].count == 2


def test_flipped_bits_give_no_wrong_hit(copied_run: Path) -> None:
    """Any bit of any file of a shard: what is returned is right, or an error names the shard."""
    chance = random.Random(1)
    reader = IndexReader.open(copied_run)
    rows = {row.address: row.tokens.tolist() for row in all_rows(copied_run)}
    query = reader.shards[0].tokens(3).tolist()[:30]
    files = [path for path in reader.shards[0].directory.glob("*.*") if path.is_file()]
    named = 0
    for _ in range(60):
        path = chance.choice(files)
        good = path.read_bytes()
        at = chance.randrange(len(good) * 8)
        path.write_bytes(good[: at // 8] + bytes([good[at // 8] ^ 1 << at % 8]) + good[at // 8 + 1 :])
        try:
            found = trace(
                IndexReader.open(copied_run), token_ids=query, options=TraceOptions(min_length=4, num_hits=50)
            )
            for span in found.spans:
                for hit in span.hits:
                    assert rows[hit.address][hit.offset : hit.offset + span.num_tokens] == list(span.token_ids)
            named += found.shards_failed
        except KisekiError as error:
            named += reader.shards[0].info.name in str(error)
        finally:
            path.write_bytes(good)
    assert named > 5


def test_a_word_at_the_start_of_a_document_is_found_after_a_space(reader: IndexReader, text_run: TextRun) -> None:
    """ABRACADABRA opens a document; after a space it has other tokens."""
    text = next(iter(text_run.documents.values()))[:60]
    inside = trace(reader, "The model said: " + text)
    span = max(inside.spans, key=lambda span: span.num_tokens)
    assert inside.text[span.char_start : span.char_end] == text[: len(span.text)] and span.text.startswith(
        "ABRACADABRA"
    )
    assert reader.tokenizer.decode(span.token_ids) == span.text
    assert inside.num_tokens_covered <= inside.num_tokens


def test_spans_that_packing_cut_are_joined(reader: IndexReader, text_run: TextRun) -> None:
    (source, document_id), text = next(iter(text_run.documents.items()))
    found = trace(reader, text[:600], options=TraceOptions(max_spans=100))
    assert found.joined, "64 tokens a sequence: the document was cut"
    for join in found.joined:
        assert (join.source, join.document_id) == (source, document_id)
        first, second = found.spans[join.first], found.spans[join.second]
        assert first.char_end == second.char_start
        assert join.num_tokens == first.num_tokens + second.num_tokens > 64


def test_documents_are_ranked_by_cover_then_relevance(reader: IndexReader, text_run: TextRun) -> None:
    first, second = list(text_run.documents.items())[:2]
    found = trace(reader, first[1][:300] + "\n\nand then\n\n" + second[1][:100], options=TraceOptions(max_spans=100))
    ranked = [(document.source, document.document_id) for document in found.documents]
    assert ranked.index(first[0]) < ranked.index(second[0])
    assert all(document.relevance > 0 for document in found.documents)
    covers = [document.num_tokens for document in found.documents]
    assert covers == sorted(covers, reverse=True) and covers[0] <= found.num_tokens


def test_source_and_document_choose_hits_by_where_they_begin(reader: IndexReader, text_run: TextRun) -> None:
    rows = all_rows(text_run.run_dir)
    names = sorted({segment.source for row in rows for segment in row.segments})
    documents = sorted({(segment.source, segment.document_id) for row in rows for segment in row.segments})
    texts = {row.address: row.tokens.tolist() for row in rows}
    gram = [reader.tokenizer.encode(" of").token_ids.tolist()[0]]

    def scanned(source: str, document_id: str | None = None, before: int = 10**9) -> int:
        return sum(
            texts[row.address][at] == gram[0]
            for row in rows
            if row.address.global_step < before
            for segment in row.segments
            if segment.source == source and document_id in (None, segment.document_id)
            for at in range(segment.start, segment.start + segment.length)
        )

    for source in names:
        assert count_of_ngram(reader, gram, Selection(source=source)).count == scanned(source)
        assert count_of_ngram(reader, gram, Selection(source=source, before_step=20)).count == scanned(
            source, before=20
        )
    for source, document_id in documents[::5]:
        chosen = Selection(source=source, document_id=document_id)
        assert count_of_ngram(reader, gram, chosen).count == scanned(source, document_id)
    assert count_of_ngram(reader, gram, Selection(source="no such source")).count == 0
    (source, document_id), text = list(text_run.documents.items())[4]
    found = trace(reader, text[:200], options=TraceOptions(selection=Selection(document_id=document_id)))
    assert {(s.source, s.document_id) for span in found.spans for hit in span.hits for s in hit.segments[:1]} == {
        (source, document_id)
    }
    assert all(span.exposures and sum(span.exposures) == span.count for span in found.spans if span.hits)
