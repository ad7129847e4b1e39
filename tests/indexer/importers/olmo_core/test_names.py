"""One document, one name: token files made as the Dolma toolkit makes them, exported in both ways, held against their texts."""

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from indexer.build.update import update_index
from indexer.corpora.reader import CorpusReader
from indexer.importers.olmo_core.reconstruct import reconstruct_olmo_core
from tests.conftest import byte_level_bpe, read_documents
from tests.indexer.corpora.published import write_lines
from tests.ui.test_cli import run_here
from train_hooks.documents.olmo import OlmoDocuments
from train_hooks.export_format.documents.dolma_files import dolma_name
from train_hooks.export_format.errors import InputError

LENGTH, BATCH, VOCABULARY = 32, 4, 800
ROOT = "s3://bucket/preprocessed/dolma"
FILES = {
    "wiki/v0/documents/en/0000.json.gz": ("devils-dictionary", "en"),
    "wiki/v0/documents/0001.json.gz": ("tatoeba-ja", "wiki"),
    "c4-filtered/c4-0000.json.gz": ("state-of-the-union", "c4-filtered"),
    "books-0007.jsonl": ("moby-dick", "books"),
}
"""Path in the corpus → whose texts stand there, and the source that is expected."""


class NumpyFSLDataset:
    """What OLMo-core's has."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.dtype = tuple(map(str, paths)), np.uint16
        counts = [path.stat().st_size // 2 // LENGTH for path in paths]
        self.offsets = tuple((sum(counts[:number]), sum(counts[: number + 1])) for number in range(len(counts)))


def texts_of(source: str) -> Iterator[str]:
    """Real texts, with whitespace around some, and one that is nothing else."""
    for number, text in enumerate(read_documents(source, 6).values()):
        yield (f"\n  {text[:900]}\n" if number % 2 else text[:900])
    yield " \n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`corpus`, its tokenizer, and token files of it with `config.json` and an order; each native id occurs twice."""
    made = tmp_path_factory.mktemp("dolma")
    texts = {path: list(texts_of(source)) for path, (source, _) in FILES.items()}
    tokenizer = byte_level_bpe([text for part in texts.values() for text in part], VOCABULARY)
    tokenizer.save(str(made / "tokenizer.json"))
    paths = []
    for number, (path, part) in enumerate(texts.items()):
        records = [{"id": f"id {line // 2}, of many", "text": text, "source": "web"} for line, text in enumerate(part)]
        write_lines(made / "corpus" / path, records)
        paths.append(made / f"part-{number}.npy")
        tokenize(tokenizer, path, records, paths[-1])
    num_instances = sum(path.stat().st_size // 2 // LENGTH for path in paths)
    order = np.random.default_rng(5).permutation(num_instances).astype(np.uint32)
    order.tofile(made / f"global_indices_dataset_size{num_instances}_epoch1_seed0_v1.npy")
    dataset = {
        "paths": list(map(str, paths)), "sequence_length": LENGTH,
        "tokenizer": {"vocab_size": VOCABULARY, "eos_token_id": 0, "pad_token_id": 0},
    }  # fmt: skip
    config = {"dataset": dataset, "data_loader": {"global_batch_size": BATCH * LENGTH}}
    (made / "config.json").write_text(json.dumps(config))
    return made


def tokenize(tokenizer: Tokenizer, path: str, records: list[dict[str, str]], tokens: Path) -> None:
    """As the Dolma toolkit does: whitespace around a text left out, empty ones skipped, lines counted from 1."""
    ids: list[int] = []
    with gzip.open(tokens.with_suffix(".csv.gz"), "wt", encoding="utf-8", newline="") as file:
        for line, record in enumerate(records, start=1):
            if text := record["text"].strip():
                found = [*tokenizer.encode(text).ids, 0]
                csv.writer(file).writerow([len(ids), len(ids) + len(found), record["id"], f"{ROOT}/{path}", line])
                ids += found
    np.array(ids, np.uint16).tofile(tokens)


def test_the_resolver_names_documents_as_the_corpus_reader_does(directory: Path) -> None:
    paths = sorted(directory.glob("part-*.npy"))
    resolver = OlmoDocuments(NumpyFSLDataset(paths), corpus=ROOT + "/")
    files = [np.fromfile(path, np.uint16) for path in paths]
    whole = [file[at : at + LENGTH] for file in files for at in range(0, len(file) - LENGTH + 1, LENGTH)]
    named = {
        (segment.source, segment.document_id)
        for index, tokens in enumerate(whole)
        for segment in resolver.segments(index, tokens)
    }
    read = {
        (document.source, document.document_id)
        for document in CorpusReader(directory / "corpus").documents()
        if document.text.strip()
    }
    assert named == read and len(read) == 24
    assert ("en", "id 0, of many@wiki/v0/documents/en/0000.json.gz#2") in named
    assert {source for source, _ in named} == {source for _, source in FILES.values()}


def test_an_export_is_held_against_its_texts_and_leads_back_to_them(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (order,) = directory.glob("global_indices*")
    run, corpus = tmp_path / "run", directory / "corpus"
    arguments = ["import", "olmo-core", directory / "config.json", run, "--indices", order, "--corpus", ROOT]
    assert run_here(capsys, monkeypatch, *arguments, "--tokenizer", directory / "tokenizer.json")[0] == 0
    code, out, _ = run_here(capsys, monkeypatch, "export", "verify", run, "--corpus", corpus, "--json")
    found = json.loads(out)["corpus"]
    assert code == 0 and found["num_segments"] == found["num_equal"] > 100 and found["num_unnamed"] == 0
    assert found["num_documents_equal"] == 24
    assert [how for how, _ in found["ways"]] == ["whitespace around it left out"]
    update_index(run)
    source, document_id = dolma_name("c4-filtered/c4-0000.json.gz", 2, "id 0, of many")
    answer = run_here(capsys, monkeypatch, "document", run, source, document_id, "--corpus", corpus, "--json")
    found = json.loads(answer[1])["source_text"]
    assert answer[0] == 0 and found["num_different"] == 0 and found["how"] == "whitespace around it left out"
    text = list(texts_of("state-of-the-union"))[1]
    assert "".join(part["text"] for part in found["parts"]) == text and text != text.strip()
    assert sum(bool(part["steps"]) for part in found["parts"]) >= 2


def test_texts_that_were_elsewhere(directory: Path, tmp_path: Path) -> None:
    dataset = NumpyFSLDataset(sorted(directory.glob("part-*.npy")))
    for corpus in ("/data/dolma", ROOT[:-1], ""):
        with pytest.raises(InputError, match=r"expected texts below the corpus .*, found 's3://bucket/preprocessed/"):
            OlmoDocuments(dataset, corpus=corpus)
    (order,) = directory.glob("global_indices*")
    with pytest.raises(InputError, match="expected texts below the corpus ''"):
        reconstruct_olmo_core(directory / "config.json", tmp_path / "run", [order])
    assert not (tmp_path / "run").exists()


def test_what_lies_elsewhere_in_a_file_keeps_its_whole_address(tmp_path: Path) -> None:
    np.arange(64, dtype=np.uint16).tofile(tmp_path / "part.npy")
    with gzip.open(tmp_path / "part.csv.gz", "wt") as file:
        file.write("0,10,a,/data/wiki/0.json.gz,3\n10,30,b,/other/books/1.json.gz,4\n30,50,,,\n".replace(",,,", ",,,0"))
    resolver = OlmoDocuments(NumpyFSLDataset([tmp_path / "part.npy"]), corpus="/data")
    found = [
        segment for index in (0, 1) for segment in resolver.segments(index, np.arange(32 * index, 32 * index + 32))
    ]
    assert [(segment.source, segment.document_id) for segment in found] == [
        ("wiki", "a@wiki/0.json.gz#3"),
        ("books", "b@/other/books/1.json.gz#4"),
        ("identity unknown", ""),
        ("identity unknown", ""),
    ]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("a/b/c.jsonl.gz", "b"),
        ("cc_en_head-0001.json.gz", "cc_en_head"),
        ("documents/v1_7/x_12.jsonl.zst", "x"),
        ("s3://bucket/1.json.gz", "bucket"),
        ("7.json", "7"),
        ("/v2.parquet", "v2"),
    ],
)
def test_sources_of_paths(path: str, source: str) -> None:
    assert dolma_name(path, 1, None) == (source, f"{path}#1")
