"""Corpora in the record layouts that their publishers give them, made from the example corpus's real texts.

Field names, order and nesting are those of the published files; values that we cannot know (dates, digests, scores) are made up
of the right kind. Each corpus has several files, and the awkward records of `awkward_texts` among its real ones.
"""

import gzip
import hashlib
import json
import unicodedata
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import read_documents

Record = dict[str, Any]
__all__ = ["CORPORA", "awkward_texts", "texts", "write_lines"]


def awkward_texts() -> list[str]:
    """Empty, NFD Japanese, spelled-out special tokens, U+2581, CRLF, a NUL, line separators that end no JSON line."""
    nfd = unicodedata.normalize("NFD", "ガギグゲゴ パピプペポ がぎぐげご。ドイツのビール、ポーランドのパン。" * 4)
    assert nfd != unicodedata.normalize("NFC", nfd)
    return [
        "",
        nfd,
        "In GPT-2 the text <|endoftext|> ends a document, and <|endoftext|><|endoftext|> ends two. " * 3,
        "SentencePiece writes \u2581a\u2581space as \u2581, and \u2581\u2581 is two of them. " * 3,
        "One line.\r\nAnother\rone.\u2028A separator.\u2029Another.\x00 And \x85 the end." * 3,
    ]


def texts() -> list[str]:
    """Real English, Japanese and code, and the awkward ones in the midst of them."""
    real = [
        text
        for source in ("devils-dictionary", "tatoeba-ja", "go-stdlib")
        for text in read_documents(source, 4).values()
    ]
    return [*real[:5], *awkward_texts(), *real[5:]]


def write_lines(path: Path, records: Sequence[Record]) -> None:
    """JSON lines, compressed as the name says."""
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    write_bytes(path, data)


def write_bytes(path: Path, data: bytes) -> None:
    """Bytes, compressed as the name says; gzip in two members and zstandard in two frames, as appending tools leave them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = len(data) // 2
    if path.suffix == ".gz":
        data = gzip.compress(data[:half]) + gzip.compress(data[half:])
    elif path.suffix == ".zst":
        data = b"".join(pa.compress(part, "zstd", asbytes=True) for part in (data[:half], data[half:]))
    path.write_bytes(data)


def _urn(text: str) -> str:
    return f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, text)}>"


def _halves(items: list[str]) -> tuple[list[str], list[str]]:
    return items[: len(items) // 2], items[len(items) // 2 :]


def write_llm_jp(directory: Path, items: list[str]) -> list[tuple[str, str]]:
    """v3's directories: a wiki with ids (one of them missing, one twice), code with hexsha, a crawl without any."""
    wiki, rest = _halves(items)
    code, crawl = _halves(rest)
    titles = [
        {"id": str(100 + index), "title": f"第{index}", "url": "https://ja.wikipedia.org/"}
        for index in range(len(wiki))
    ]
    del titles[1]["id"]
    titles[3]["id"] = titles[2]["id"]
    records = [{"text": text, "meta": meta} for text, meta in zip(wiki, titles, strict=True)]
    write_lines(directory / "ja/ja_wiki/train_0.jsonl.gz", records[:3])
    write_lines(directory / "ja/ja_wiki/train_1.jsonl.gz", records[3:])
    shas = [hashlib.sha1(text.encode()).hexdigest() for text in code]
    code_records = [
        {"text": text, "meta": {"hexsha": sha, "size": len(text), "ext": "go", "lang": "Go", "max_stars_count": None}}
        for text, sha in zip(code, shas, strict=True)
    ]
    write_lines(directory / "code/code_stack/train_0.jsonl.gz", code_records)
    write_lines(directory / "ja/ja_cc/train_10.jsonl.gz", [{"text": text, "meta": {}} for text in crawl[1:]])
    write_lines(directory / "ja/ja_cc/train_9.jsonl.gz", [{"text": text, "meta": {}} for text in crawl[:1]])
    return [
        *(("code_stack", sha) for sha in shas),
        ("ja_cc", "ja/ja_cc/train_9.jsonl.gz#1"),
        *(("ja_cc", f"ja/ja_cc/train_10.jsonl.gz#{line}") for line in range(1, len(crawl))),
        *(("ja_wiki", meta.get("id", f"ja/ja_wiki/train_0.jsonl.gz#{index + 1}")) for index, meta in enumerate(titles)),
    ]


def write_pile(directory: Path, items: list[str]) -> list[tuple[str, str]]:
    """`train/00.jsonl.zst`: text and pile_set_name, no ids."""
    expected = []
    for number, part in enumerate(_halves(items)):
        names = ["Pile-CC", "Wikipedia (en)"]
        records = [{"text": text, "meta": {"pile_set_name": names[index % 2]}} for index, text in enumerate(part)]
        write_lines(directory / f"train/{number:02d}.jsonl.zst", records)
        expected += [(names[index % 2], f"train/{number:02d}.jsonl.zst#{index + 1}") for index in range(len(part))]
    return expected


def write_dolma(directory: Path, items: list[str]) -> list[tuple[str, str]]:
    """`v1_7`: the same id twice in one source, and one that is missing."""
    expected = []
    for number, part in enumerate(_halves(items)):
        records = [
            {
                "id": f"http://example.org/{index // 2}", "text": text, "source": "common-crawl",
                "added": "2023-04-11T09:57:03.044571+00:00", "created": "2019-02-16T00:00:00Z",
                "metadata": {"length": len(text)}, "version": "v0",
            }
            for index, text in enumerate(part)
        ]  # fmt: skip
        del records[-1]["id"]
        name = f"cc_en_head/cc_en_head-{number:04d}.json.gz"
        write_lines(directory / name, records)
        places = [f"{name}#{index + 1}" for index in range(len(part))]
        expected += [
            ("cc_en_head", f"{record['id']}@{place}" if "id" in record else place)
            for record, place in zip(records, places, strict=True)
        ]
    return expected


def write_fineweb(directory: Path, items: list[str]) -> list[tuple[str, str]]:
    """Parquet, `data/CC-MAIN-…/000_00000.parquet`, row groups smaller than the file; one id missing, one twice."""
    expected = []
    dump = "CC-MAIN-2013-20"
    for number, part in enumerate(_halves(items)):
        ids = [_urn(f"{number}/{index}") for index in range(len(part))]
        if number == 0:
            ids[1] = ids[0]
        table = pa.table(
            {
                "text": part,
                "id": [None if number and index == 2 else name for index, name in enumerate(ids)],
                "dump": [dump] * len(part),
                "url": ["http://example.org/"] * len(part),
                "date": ["2013-05-18T05:48:54Z"] * len(part),
                "file_path": ["s3://commoncrawl/crawl-data/CC-MAIN-2013-20/x.warc.gz"] * len(part),
                "language": ["en"] * len(part),
                "language_score": [0.9] * len(part),
                "token_count": pa.array([len(text) // 4 for text in part], pa.int64()),
            }
        )
        name = f"data/{dump}/000_{number:05d}.parquet"
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, directory / name, row_group_size=3)
        expected += [(dump, f"{name}#{index}" if number and index == 2 else ids[index]) for index in range(len(part))]
    return expected


def write_redpajama(directory: Path, items: list[str]) -> list[tuple[str, str]]:
    """`documents/2023-06/0000/en_head.json.gz`, its signals and minhashes beside it."""
    expected = []
    for number, part in enumerate(_halves(items)):
        place = f"2023-06/{number:04d}/en_head"
        records = [
            {
                "url": "http://example.org/", "date_download": "2023-02-04T08:17:43Z",
                "digest": f"sha1:{hashlib.sha1(text.encode()).hexdigest()}", "length": len(text), "nlines": 1,
                "source_domain": "example.org", "title": "", "raw_content": text,
                "cc_segment": "crawl-data/CC-MAIN-2023-06/x.warc.wet.gz", "original_nlines": 2, "original_length": 9,
                "line_ids": [0], "language": "en", "language_score": 0.9, "perplexity": 200.1, "bucket": "head",
            }
            for text in part
        ]  # fmt: skip
        write_lines(directory / f"documents/{place}.json.gz", records)
        signals = [{"id": f"{place}.json.gz/{index}", "quality_signals": "{}"} for index in range(len(part))]
        write_lines(directory / f"quality_signals/{place}.signals.json.gz", signals)
        expected += [("redpajama-v2", f"{place}.json.gz/{index}") for index in range(len(part))]
    return expected


def write_dclm(directory: Path, items: list[str]) -> list[tuple[str, str]]:
    """`global-shard_01_of_10/local-shard_0_of_10/shard_00000000_processed.jsonl.zst`; one record without its id."""
    expected = []
    for number, part in enumerate(_halves(items)):
        name = f"global-shard_01_of_10/local-shard_0_of_10/shard_{number:08d}_processed.jsonl.zst"
        records: list[Record] = [
            {
                "bff_contained_ngram_count_before_dedupe": 20,
                "language_id_whole_page_fasttext": {"en": 0.93},
                "metadata": {"Content-Type": "application/http; msgtype=response", "WARC-Record-ID": _urn(text + name)},
                "previous_word_count": 12, "text": text, "url": "http://example.org/", "warcinfo": "robots: classic",
                "fasttext_openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train_prob": 0.08,
            }
            for text in part
        ]  # fmt: skip
        del records[1]["metadata"]["WARC-Record-ID"]
        write_lines(directory / name, records)
        expected += [
            ("dclm", record["metadata"].get("WARC-Record-ID", f"{name}#{index + 1}"))
            for index, record in enumerate(records)
        ]
    return expected


CORPORA: dict[str, Callable[[Path, list[str]], list[tuple[str, str]]]] = {
    "llm-jp": write_llm_jp,
    "pile": write_pile,
    "dolma": write_dolma,
    "fineweb": write_fineweb,
    "redpajama-v2": write_redpajama,
    "dclm": write_dclm,
}
"""Layout → what writes a corpus of it and says the (source, document_id) of each record, in the order of files and records."""
