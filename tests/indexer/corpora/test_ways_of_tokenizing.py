"""Texts that were tokenized in one of several ways, with special tokens, or with tokenizers of another kind."""

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from indexer.build.update import update_index
from indexer.corpora.source_text import source_text
from indexer.corpora.source_tokenizer import AROUND, BEFORE
from indexer.documents.history import document_history
from indexer.reader import IndexReader
from tests.indexer.corpora.comparing import compare, documents_of
from tests.indexer.corpora.exported import LENGTH, export_documents, save_tokenizer
from tests.indexer.corpora.published import CORPORA, texts, write_lines
from train_hooks.export_format.errors import RunError


def test_ways_of_tokenizing(tmp_path: Path) -> None:
    """Spelled-out special tokens that count as such; special tokens around each text; the corpus's own ids; no tokenizer."""
    corpus = tmp_path / "corpus"
    CORPORA["fineweb"](corpus, texts())
    documents = documents_of(corpus)
    tokenizer = save_tokenizer(tmp_path / "tokenizer.json", texts())
    export_documents(tmp_path / "a/run", documents, tokenizer, spelled=False)
    report = compare(tmp_path / "a/run", corpus)
    assert report.exit_code == 0 and report.ways == ()
    around = Tokenizer.from_file(str(tokenizer))
    around.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    around.save(str(tmp_path / "around.json"))
    report = compare(tmp_path / "a/run", corpus, tmp_path / "around.json")
    assert report.exit_code == 0
    export_documents(tmp_path / "b/run", documents, tokenizer, native=True, with_tokenizer=False)
    with pytest.raises(RunError, match="without a tokenizer"):
        compare(tmp_path / "b/run", corpus)
    report = compare(tmp_path / "b/run", corpus, tokenizer)
    assert report.exit_code == 0 and report.run_tokenizer_sha256 is None


def test_redpajama_ids_in_another_form(tmp_path: Path) -> None:
    """Without `.json.gz`, as some of its scripts write them: an export that has them so names the same documents."""
    corpus, run_dir = tmp_path / "corpus", tmp_path / "run"
    CORPORA["redpajama-v2"](corpus, texts())
    named = [
        replace(document, document_id=document.document_id.replace(".json.gz", "")) for document in documents_of(corpus)
    ]
    export_documents(run_dir, named, save_tokenizer(tmp_path / "tokenizer.json", texts()))
    report = compare(run_dir, corpus)
    assert report.exit_code == 0 and report.num_equal == report.num_segments
    update_index(run_dir)
    reader = IndexReader.open(run_dir)
    exposures = document_history(reader, "redpajama-v2", named[-1].document_id).exposures
    found = source_text(reader, corpus, "redpajama-v2", named[-1].document_id, exposures)
    assert found.num_different == 0 and found.place == f"{named[-1].file}#{named[-1].number}"


def test_special_tokens_around_each_text(tmp_path: Path) -> None:
    """Put there by the tokenizer's post-processor: they count as tokens of the document."""
    CORPORA["fineweb"](tmp_path / "corpus", texts())
    bare = save_tokenizer(tmp_path / "bare.json", texts())
    tokenizer = Tokenizer.from_file(str(bare))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(tmp_path / "around.json"))
    export_documents(tmp_path / "run", documents_of(tmp_path / "corpus"), tmp_path / "around.json", around=True)
    report = compare(tmp_path / "run", tmp_path / "corpus")
    assert report.exit_code == 0 and sum(number for _, number in report.ways) == report.num_segments
    assert all(how.startswith(AROUND) for how, _ in report.ways)
    assert compare(tmp_path / "run", tmp_path / "corpus", bare).exit_code == 1


def test_a_special_token_put_before_each_text_by_hand(tmp_path: Path) -> None:
    """As nanochat's loader does; text before it, or another token than a special one, is an edit still."""
    items = ["  A first text, that is long enough for two sequences. " * 8, texts()[1]]
    tokenizer = save_tokenizer(tmp_path / "tokenizer.json", items)
    corpus = tmp_path / "corpus" / "a.jsonl"

    def write(edit: str = "") -> None:
        write_lines(corpus, [{"id": str(n), "text": edit + text, "source": "s"} for n, text in enumerate(items)])

    write()
    documents = documents_of(corpus.parent)
    export_documents(tmp_path / "run", documents, tokenizer, before=(0,))
    report = compare(tmp_path / "run", corpus.parent)
    assert report.exit_code == 0 and {how.split(", ")[0] for how, _ in report.ways} == {BEFORE}
    update_index(tmp_path / "run")
    reader = IndexReader.open(tmp_path / "run")
    name = documents[0].names[0]
    found = source_text(reader, corpus.parent, *name, document_history(reader, *name).exposures)
    assert found.num_different == 0 and "".join(part.text for part in found.parts) == items[0]
    write("!")
    assert compare(tmp_path / "run", corpus.parent).exit_code == 1
    write()
    export_documents(tmp_path / "other", documents, tokenizer, before=(5,))
    assert compare(tmp_path / "other", corpus.parent).exit_code == 1


def test_an_edit_is_not_made_up_by_another_way_of_tokenizing(tmp_path: Path) -> None:
    """One token more where the second segment begins: shifted as much as without the special token before the text."""
    items = texts()
    bare = Tokenizer.from_file(str(save_tokenizer(tmp_path / "bare.json", items)))
    ids = bare.encode(items[0]).ids
    assert len(ids) > 2 * LENGTH
    before, behind = bare.decode(ids[: LENGTH - 1]), bare.decode(ids[LENGTH - 1 :])
    edits = (before + sign + behind for sign in "!;Z\n")
    edited = next(text for text in edits if bare.encode(text).ids[LENGTH:] == ids[LENGTH - 1 :])
    bare.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    bare.save(str(tmp_path / "around.json"))
    corpus = tmp_path / "corpus" / "a.jsonl"
    write_lines(corpus, [{"id": "1", "text": items[0], "source": "s"}])
    export_documents(tmp_path / "run", documents_of(corpus.parent), tmp_path / "around.json", around=True)
    report = compare(tmp_path / "run", corpus.parent)
    assert report.exit_code == 0 and dict(report.ways) == {AROUND: report.num_segments}
    write_lines(corpus, [{"id": "1", "text": edited, "source": "s"}])
    assert compare(tmp_path / "run", corpus.parent).exit_code == 1


def test_differences_are_explained_in_the_way_of_the_other_documents(tmp_path: Path) -> None:
    """Of a document of which no segment is equal: in the tokens that training had, not one of them apart."""
    items = texts()
    tokenizer = Tokenizer.from_file(str(save_tokenizer(tmp_path / "bare.json", items)))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(tmp_path / "around.json"))
    corpus = tmp_path / "corpus" / "a.jsonl"
    records = [{"id": str(number), "text": text, "source": "s"} for number, text in enumerate(items)]
    records.append({"id": "short", "text": "two words", "source": "s"})
    write_lines(corpus, records)
    export_documents(tmp_path / "run", documents_of(corpus.parent), tmp_path / "around.json", around=True)
    write_lines(corpus, [*records[:-1], records[-1] | {"text": "two swords"}])
    report = compare(tmp_path / "run", corpus.parent)
    assert report.num_different == 1 and "training saw ' words', the source has ' sw" in report.findings[0].message


def unigram(texts: list[str], path: Path) -> Path:
    """A tokenizer of SentencePiece's kind: pieces with U+2581 for spaces, NFKC, unknown characters as bytes."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.Metaspace(prepend_scheme="always"), decoders.ByteFallback()])
    special = ["<|endoftext|>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.UnigramTrainer(vocab_size=1400, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([text for text in texts if "<|" not in text], trainer)
    tokenizer.save(str(path))
    return path


def test_a_tokenizer_of_sentencepiece_kind(tmp_path: Path) -> None:
    """U+2581 in a text and in the vocabulary, and a text that the tokenizer normalizes: tokens and characters still belong."""
    items = texts()
    CORPORA["dolma"](tmp_path / "corpus", items)
    documents = documents_of(tmp_path / "corpus")
    export_documents(tmp_path / "run", documents, unigram(items, tmp_path / "tokenizer.json"))
    report = compare(tmp_path / "run", tmp_path / "corpus")
    assert report.exit_code == 0 and report.num_documents_equal == len(documents)
    update_index(tmp_path / "run")
    reader = IndexReader.open(tmp_path / "run")
    for document in documents:
        history = document_history(reader, document.source, document.document_id, limit=1000)
        found = source_text(reader, tmp_path / "corpus", document.source, document.document_id, history.exposures)
        assert "".join(part.text for part in found.parts) == document.text and found.num_different == 0
    changed = [text.replace("\u2581", " ") for text in items]
    CORPORA["dolma"](tmp_path / "changed", changed)
    report = compare(tmp_path / "run", tmp_path / "changed")
    assert [
        text for text in items if "\u2581" in text
    ] and report.exit_code == 0  # to this tokenizer they are the same text
