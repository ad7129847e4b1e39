"""The record layouts of eight published corpora, and the stable id of each record.

| layout | source | document_id |
|---|---|---|
| llm-jp (v1, v2, v3) | the subset: `ja_wiki` of `ja/ja_wiki/train_0.jsonl.gz` | `meta.id` or `meta.hexsha`, else path#line |
| pile | `meta.pile_set_name` | path#line |
| dolma | the directory: `wiki` of `wiki/v0/documents/1.json.gz` | id@path#line: v1.7 has the same id several times |
| fineweb | `dump` | `id`, the WARC record's |
| redpajama-v2 | redpajama-v2 | snapshot/shard/file.json.gz/row, however it was written |
| dclm | dclm | `metadata.WARC-Record-ID` |

Paths are those below the corpus. Where a record lacks its native id, path#line (of Parquet, path#row) takes its place. Texts
are kept as they are: no normalisation, no stripping, empty ones too.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from train_hooks.export_format.documents.dolma_files import dolma_name

__all__ = ["LAYOUTS", "Layout", "NamedRecord", "file_of_id", "layout_of", "positional_id"]

Record = Mapping[str, Any]
_LLM_JP_SUBSET = re.compile(r"(?:ja|en|ko|zh|code)_[A-Za-z0-9_.-]+")
_SPLIT = re.compile(r"[_-](?:train|valid|validation|test)(?:[_-]?\d+)?$")
_ENDINGS = re.compile(r"\.(?:jsonl|ndjson|json|parquet)(?:\.gz|\.zst|\.zstd)?$")
_PLACE = re.compile(r"(?:.*@)?(?P<file>.+)#\d+")
_REDPAJAMA = re.compile(r"(\d{4}-\d{2})/(\d{4})/([a-z]{2}_(?:head|middle|tail))(?:\.json\.gz)?(?:/(\d+))?$")


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedRecord:
    """A record with its names. native_id, native_source: what the corpus itself calls it, where it calls it anything."""

    source: str
    document_id: str
    native_id: str | None
    text: str
    native_source: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """One corpus's records. `matches` looks at a record and the name of its file; `name` gives it its names."""

    matches: Callable[[Record, str], bool]
    name: Callable[[Record, str, int], NamedRecord]


def layout_of(record: Record, file: str) -> str | None:
    """Name of the layout of a record, None where it is none of LAYOUTS. The first record of a file speaks for the file."""
    return next((name for name, layout in LAYOUTS.items() if layout.matches(record, file)), None)


def positional_id(text: str) -> str | None:
    """RedPajama-V2's id `2023-06/0000/en_head.json.gz/7` of any of its forms: with or without `.json.gz`, behind any path."""
    match = _REDPAJAMA.search(text)
    return None if match is None or match[4] is None else f"{match[1]}/{match[2]}/{match[3]}.json.gz/{int(match[4])}"


def file_of_id(document_id: str) -> str | None:
    """The file that an id names: its path below the corpus, of RedPajama-V2 the end of it; None for an id that names none."""
    place = _PLACE.fullmatch(document_id)
    if place is not None:
        return place["file"]
    position = positional_id(document_id)
    return None if position is None else position.rpartition("/")[0]


def _text(record: Record, key: str) -> str:
    """Raises ValueError where it is no text, or half of a surrogate pair stands in it."""
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f'expected a text in "{key}", found {"none" if value is None else type(value).__name__}')
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f'half of a surrogate pair in "{key}", at character {error.start}') from error
    return value


def _plain(value: object) -> str | None:
    """An id that is one: a text that is not empty, or a whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None


def _meta(record: Record, key: str = "meta") -> Record:
    value = record.get(key)
    if isinstance(value, str):  # some conversions keep it as JSON
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, Mapping) else {}


def _subset(file: str) -> str:
    """The innermost directory named like a subset (levels may lie below it), else the one of the file, else the file."""
    *directories, name = _ENDINGS.sub("", file).split("/")
    named = [directory for directory in directories if _LLM_JP_SUBSET.fullmatch(directory)]
    return (named or directories or [_SPLIT.sub("", name)])[-1]


def _llm_jp(record: Record, file: str, number: int) -> NamedRecord:
    meta = _meta(record)
    native = _plain(meta.get("id")) or _plain(meta.get("hexsha"))
    text = _text(record, "text")
    return NamedRecord(source=_subset(file), document_id=native or f"{file}#{number}", native_id=native, text=text)


def _pile(record: Record, file: str, number: int) -> NamedRecord:
    name = _plain(_meta(record).get("pile_set_name")) or "pile"
    return NamedRecord(source=name, document_id=f"{file}#{number}", native_id=None, text=_text(record, "text"))


def _dolma(record: Record, file: str, number: int) -> NamedRecord:
    native = _plain(record.get("id"))
    source, document_id = dolma_name(file, number, native)
    return NamedRecord(
        source=source,
        document_id=document_id,
        native_id=native,
        text=_text(record, "text"),
        native_source=_plain(record.get("source")),
    )


def _fineweb(record: Record, file: str, number: int) -> NamedRecord:
    native = _plain(record.get("id"))
    source = _plain(record.get("dump")) or "fineweb"
    return NamedRecord(
        source=source, document_id=native or f"{file}#{number}", native_id=native, text=_text(record, "text")
    )


def _redpajama(record: Record, file: str, number: int) -> NamedRecord:
    given = _plain(record.get("doc_id")) or f"{file}/{number if file.endswith('.parquet') else number - 1}"
    found = positional_id(given)
    return NamedRecord(
        source="redpajama-v2",
        document_id=found or f"{file}#{number}",
        native_id=_plain(record.get("doc_id")),
        text=_text(record, "raw_content"),
    )


def _dclm(record: Record, file: str, number: int) -> NamedRecord:
    native = _plain(_meta(record, "metadata").get("WARC-Record-ID"))
    return NamedRecord(
        source="dclm", document_id=native or f"{file}#{number}", native_id=native, text=_text(record, "text")
    )


def _is_llm_jp_path(file: str) -> bool:
    return _LLM_JP_SUBSET.fullmatch(_subset(file)) is not None


LAYOUTS: Mapping[str, Layout] = {
    "redpajama-v2": Layout(matches=lambda record, _: "raw_content" in record, name=_redpajama),
    "dclm": Layout(
        matches=lambda record, _: "warcinfo" in record or "WARC-Record-ID" in _meta(record, "metadata"), name=_dclm
    ),
    "fineweb": Layout(matches=lambda record, _: "dump" in record and "text" in record, name=_fineweb),
    "pile": Layout(
        matches=lambda record, file: "pile_set_name" in _meta(record) and not _is_llm_jp_path(file), name=_pile
    ),
    "llm-jp": Layout(matches=lambda record, _: "text" in record and "meta" in record, name=_llm_jp),
    "dolma": Layout(matches=lambda record, _: "text" in record and ("id" in record or "source" in record), name=_dolma),
}
