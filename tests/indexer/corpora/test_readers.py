"""Corpus readers: every record of every layout comes out whole, in order, under its stable id; what cannot be read is named."""

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexer.corpora import files
from indexer.corpora.files import list_files, missing_numbers
from indexer.corpora.layouts import positional_id
from indexer.corpora.reader import CorpusDocument, CorpusReader
from tests.conftest import CORPUS, read_documents
from tests.indexer.corpora.published import CORPORA, texts, write_bytes, write_lines
from train_hooks.export_format.errors import InputError


def read(path: Path, layout: str | None = None) -> tuple[list[CorpusDocument], CorpusReader]:
    reader = CorpusReader(path, layout=layout)
    return list(reader.documents()), reader


@pytest.mark.parametrize("layout", CORPORA)
def test_published_layouts(layout: str, tmp_path: Path) -> None:
    items = texts()
    expected = CORPORA[layout](tmp_path, items)
    documents, reader = read(tmp_path)
    assert [(document.source, document.document_id) for document in documents] == expected
    assert reader.problems.number == 0
    assert sorted(document.text for document in documents) == sorted(items)
    assert read(tmp_path, layout=layout)[0] == documents
    for document in documents:
        assert document.text_sha256 == hashlib.sha256(document.text.encode()).hexdigest()
        assert document.text == text_at(tmp_path / document.file, document.number)
    for done in reader.files_read:
        assert done.sha256 == hashlib.sha256((tmp_path / done.name).read_bytes()).hexdigest()
        assert done.num_records == sum(document.file == done.name for document in documents)


def text_at(path: Path, number: int) -> str:
    """The text of a record, read by other means: the whole file, then line or row."""
    if path.suffix == ".parquet":
        return str(pq.read_table(path).column("text")[number])
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zst":
        data = pa.input_stream(pa.BufferReader(data), compression="zstd").read()
    record = json.loads(data.split(b"\n")[number - 1])
    return str(record.get("text", record.get("raw_content")))


def test_example_corpus_under_its_own_ids() -> None:
    documents, reader = read(CORPUS)
    wanted = read_documents("tatoeba-ja", 1000)
    found = {
        (document.source, document.native_id): document.text
        for document in documents
        if document.source == "tatoeba-ja"
    }
    assert found == wanted and len(documents) == 590 and reader.problems.number == 0


def test_llm_jp_v1_and_meta_as_json(tmp_path: Path) -> None:
    pq_dir = tmp_path / "en_wiki"
    pq_dir.mkdir()
    pq.write_table(pa.table({"text": ["a", "b"], "meta": ['{"id": 7}', "{}"]}), pq_dir / "train_0.parquet")
    write_lines(tmp_path / "ja_wiki_train_0.jsonl", [{"text": "x", "meta": {"id": 5}}])
    write_lines(tmp_path / "en_pile/train_0.jsonl", [{"text": "y", "meta": {"pile_set_name": "Pile-CC"}}])
    documents, _ = read(tmp_path)
    assert [(document.source, document.document_id) for document in documents] == [
        ("en_pile", "en_pile/train_0.jsonl#1"),
        ("en_wiki", "7"),
        ("en_wiki", "en_wiki/train_0.parquet#1"),
        ("ja_wiki", "5"),
    ]


def test_redpajama_ids_are_one_however_they_are_written() -> None:
    wanted = "2023-06/0000/en_head.json.gz/12"
    for form in (
        wanted,
        "2023-06/0000/en_head/12",
        "/data/rp/documents/2023-06/0000/en_head.json.gz/12",
        "x/" + wanted,
    ):
        assert positional_id(form) == wanted
    assert positional_id("2023-06/0000/en_head.json.gz") is None and positional_id("a/b/c/1") is None


def test_bad_lines_are_named_and_the_others_read(tmp_path: Path) -> None:
    good = {"id": "a", "text": "good", "source": "s"}
    lines = [
        json.dumps(good).encode(),
        b"",
        b'{"id": "b", "text": "cut off',
        b'{"id": "c", "source": "s"}',
        b'{"id": "d", "text": null, "source": "s"}',
        b'{"id": "e", "text": "caf\xe9", "source": "s"}',
        b'["no object"]',
        b'{"id": "f", "text": "half \\ud83d", "source": "s"}',
        b'{"id": "g", "text": "' + b"x" * 300 + b'"}',
        b"[" * 5000,
        json.dumps({**good, "id": "z"}).encode(),
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "MAX_LINE_BYTES", 1 << 14)
        documents, reader = read(tmp_path)
    assert [(document.native_id, document.number) for document in documents] == [("a", 1), ("g", 9), ("z", 11)]
    assert reader.problems.number == 7
    for number, what in (
        (3, "JSON"),
        (4, "found none"),
        (5, "found none"),
        (6, "UTF-8"),
        (7, "list"),
        (8, "surrogate"),
    ):
        assert any(
            problem.startswith(f"a.jsonl line {number}:") and what in problem for problem in reader.problems.first
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "MAX_LINE_BYTES", 128)
        documents, reader = read(tmp_path)
    assert [document.number for document in documents] == [1, 11]
    assert any(problem.startswith("a.jsonl line 9: longer") for problem in reader.problems.first)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_files_that_are_cut_or_damaged(name: str, tmp_path: Path) -> None:
    records = [{"id": str(index), "text": f"text {index} " * 50, "source": "s"} for index in range(2000)]
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(records), tmp_path / name, row_group_size=100)
    else:
        write_lines(tmp_path / name, records)
    write_lines(tmp_path / "b.jsonl", records[:1])
    whole = (tmp_path / name).read_bytes()
    assert len(read(tmp_path)[0]) == 2001
    for damaged in (
        whole[: len(whole) * 2 // 3],
        whole[: len(whole) // 3] + b"\0" * 999 + whole[len(whole) // 3 + 999 :],
    ):
        (tmp_path / name).write_bytes(damaged)
        documents, reader = read(tmp_path)
        assert documents[-1].file == "b.jsonl" and len(documents) < 2001
        assert reader.problems.number >= 1 and reader.problems.first[-1].startswith(f"{name}"), reader.problems


def test_what_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found none"):
        CorpusReader(tmp_path / "nothing")
    with pytest.raises(InputError, match="expected files named"):
        CorpusReader(tmp_path)
    write_lines(tmp_path / "a.jsonl", [{"prompt": "x"}])
    with pytest.raises(InputError, match=r"a\.jsonl line 1: expected a record of .* found keys prompt"):
        list(CorpusReader(tmp_path).documents())
    with pytest.raises(InputError, match="layout: expected one of redpajama-v2"):
        CorpusReader(tmp_path, layout="c4")


def test_order_and_holes_in_numbers(tmp_path: Path) -> None:
    for name in ("x/train_10.jsonl", "x/train_2.jsonl", "x/.cache/a.jsonl", "x/notes.txt", "x/_tmp.jsonl", "b.json.gz"):
        write_bytes(tmp_path / name, b"{}\n")
    assert [file.name for file in list_files(tmp_path)] == ["b.json.gz", "x/train_2.jsonl", "x/train_10.jsonl"]
    assert missing_numbers(["t_0.jsonl", "t_3.jsonl", "u_7.jsonl"]) == ["t_1.jsonl", "t_2.jsonl"]
    assert missing_numbers(["p-00000-of-00003.parquet", "p-00002-of-00003.parquet"]) == ["p-00001-of-00003.parquet"]
    assert missing_numbers(["p-1-of-3.gz", "p-3-of-3.gz"]) == ["p-2-of-3.gz"]
    assert missing_numbers(["2023-06/0000/en.json.gz", "2023-06/0002/en.json.gz"]) == ["2023-06/0001/en.json.gz"]
    assert missing_numbers(["00.jsonl.zst", "01.jsonl.zst", "plain.jsonl"]) == []


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    CORPORA["pile"](tmp_path, texts())
    seen: list[tuple[int, int]] = []
    list(CorpusReader(tmp_path, progress=lambda done, total: seen.append((done, total))).documents())
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)


def test_a_cut_file_gives_what_stands_before_the_cut(tmp_path: Path) -> None:
    """Few lines too, all of which a large buffer would have held when the cut was met."""
    records = [{"id": str(index), "text": hashlib.sha256(str(index).encode()).hexdigest() * 20} for index in range(400)]
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        path = tmp_path / name.partition(".")[2] / name
        write_lines(path, records)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
        documents, reader = read(path.parent)
        assert 100 <= len(documents) < 300 and [document.number for document in documents] == list(
            range(1, len(documents) + 1)
        )
        assert f"cut or damaged behind line {len(documents)}" in reader.problems.first[-1]


def test_compressed_files_of_no_bytes_are_named(tmp_path: Path) -> None:
    """An empty text makes a compressed file of some bytes: one of none is what a download that failed leaves."""
    write_lines(tmp_path / "a_0.jsonl", [{"id": "x", "text": "y"}])
    for name in ("a_1.jsonl.gz", "a_2.jsonl.zst", "a_3.jsonl"):
        (tmp_path / name).write_bytes(b"")
    write_bytes(tmp_path / "a_4.jsonl.gz", b"")
    documents, reader = read(tmp_path)
    assert len(documents) == 1 and reader.problems.number == 2
    assert [problem.partition(":")[0] for problem in reader.problems.first] == ["a_1.jsonl.gz", "a_2.jsonl.zst"]


def test_rows_of_parquet_that_are_no_text_are_named(tmp_path: Path) -> None:
    values = [b"one", None, b"\xff\xfe no UTF-8", "四".encode(), b""]
    column = pa.array(values, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column, "id": list("abcde"), "dump": ["d"] * 5}), tmp_path / "a.parquet")
    documents, reader = read(tmp_path)
    assert [(document.document_id, document.text) for document in documents] == [("a", "one"), ("d", "四"), ("e", "")]
    assert reader.problems.first == [
        'a.parquet row 1: expected a text in "text", found none',
        "a.parquet row 2: expected UTF-8, found other bytes at byte 0",
    ]
    assert [done.num_records for done in reader.files_read] == [5]


def test_directories_behind_links_belong_to_the_corpus(tmp_path: Path) -> None:
    write_lines(tmp_path / "disk/wiki/train_0.jsonl", [{"text": "x", "meta": {"id": "1"}}])
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "ja_wiki").symlink_to(tmp_path / "disk/wiki")
    (tmp_path / "disk/wiki/loop").symlink_to(corpus)
    assert [file.name for file in list_files(corpus)] == ["ja_wiki/train_0.jsonl"]


def test_subsets_with_directories_below_them(tmp_path: Path) -> None:
    """LLM-jp v3's crawls lie in levels; the subset is the directory that is named like one."""
    for level in (0, 2):
        write_lines(tmp_path / f"ja/ja_warp_html/level{level}/train_0.jsonl.gz", [{"text": str(level), "meta": {}}])
    documents, _ = read(tmp_path)
    assert [document.names for document in documents] == [
        (("ja_warp_html", f"ja/ja_warp_html/level{level}/train_0.jsonl.gz#1"),) for level in (0, 2)
    ]


def test_a_dolma_file_whose_first_record_has_no_id(tmp_path: Path) -> None:
    """It says which layout the file has all the same, and is a document of it."""
    write_lines(
        tmp_path / "wiki/0.jsonl", [{"text": "one", "source": "wiki"}, {"id": "2", "text": "two", "source": "w"}]
    )
    documents, reader = read(tmp_path)
    assert [document.document_id for document in documents] == ["wiki/0.jsonl#1", "2@wiki/0.jsonl#2"]
    assert reader.problems.number == 0


def test_numbers_that_count_no_files_let_expect_none() -> None:
    """Times and hashes in names: a list of all between them would not fit into memory."""
    assert missing_numbers(["1.json", "300000.json"]) == []
    assert missing_numbers(["a-of-300000.json", "1-of-300000.json"]) == []
    assert len(missing_numbers(["1.json", "10000.json"])) == 9998
