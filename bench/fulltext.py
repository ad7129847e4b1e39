"""Full text and n-grams against SQLite FTS5 and a DuckDB scan over the same segments: build rate, size, latency.

    python bench/fulltext.py [--tokens-millions 20] [--cjk-millions 4] [--queries 40] [--dir DIR]

English and code are the tokens of support/real_tokens.py; Japanese is that of the example corpus with a tokenizer of its own,
repeated in another order as often as needed. Runs are written by the real exporter and indexed as `kiseki index` does it.
Rates are tokens a CPU-second of this process, all its threads; latencies are of whole answers with ten snippets, in process.
The peers get decoded texts and answer with ten row numbers.
"""

import gzip
import json
import random
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import duckdb
import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.support.history import Figures, bench_options, recorded
from bench.support.real_tokens import CACHE, ROOT, TOKENIZER, real_tokens
from bench.whole_trace import LENGTH, SLOTS, WRITERS, export_tokens
from indexer.build.update import IndexOptions, update_index
from indexer.fulltext.engine import FullTextUnit, build_full_text
from indexer.fulltext.terms import spaced_terms, terms_of
from indexer.reader import IndexReader
from indexer.search.query.compiler import Frequencies
from indexer.search.search import SearchOptions, search
from indexer.tokenizer.tokenizer import RunTokenizer
from train_hooks.export_format.reading.reader import RunReader

SEGMENT, JAPANESE = 700, CACHE / "tokenizer-ja.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A run's tokens cut into segments, and their texts."""

    name: str
    run_dir: Path
    tokens: np.ndarray
    segments: list[np.ndarray]
    texts: list[str]


def cpu_s() -> float:
    """CPU-seconds of this process, all threads, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def timed(work: Callable[[], object]) -> float:
    """CPU-seconds of some work."""
    started = cpu_s()
    work()
    return cpu_s() - started


def japanese(num: int) -> np.ndarray:
    """`num` tokens of the Japanese of the example corpus, 12,000 ids learnt on it."""
    texts = []
    for name in ("apache-httpd-docs-ja", "tatoeba-ja"):
        with gzip.open(ROOT / "examples" / "corpus" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            texts += [json.loads(line)["text"] for line in file]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=12_000, initial_alphabet=alphabet, show_progress=False)
    )
    CACHE.mkdir(exist_ok=True)
    tokenizer.save(str(JAPANESE))
    encoded = [np.array(each.ids, np.uint16) for each in tokenizer.encode_batch(texts)]
    chance, pieces, total = np.random.default_rng(1), [], 0
    while total < num:
        order = chance.permutation(len(encoded))
        pieces += [encoded[index] for index in order]
        total += sum(map(len, encoded))
    return np.concatenate(pieces)[:num]


def corpus(name: str, run_dir: Path, figures: Figures) -> Corpus:
    """What a run holds, indexed; prints what the whole `kiseki index` took."""
    started = cpu_s()
    report = update_index(run_dir)
    if report.published:
        rate = report.num_tokens / (cpu_s() - started) / 1e6
        figures.add(f"{name}: whole index", rate * 1e6, "tokens/CPU-s")
        print(f"{name}: whole `kiseki index`: {rate:.2f} million tokens a CPU-second", flush=True)
    shards = IndexReader.open(run_dir).shards
    tokens = np.concatenate([shard.tokens(row) for shard in shards for row in range(shard.info.num_sequences)])
    segments = [tokens[start : start + SEGMENT] for start in range(0, len(tokens), SEGMENT)]
    texts = RunTokenizer(RunReader(run_dir)).decode_many(segments)
    return Corpus(name=name, run_dir=run_dir, tokens=tokens, segments=segments, texts=texts)


def units(made: Corpus) -> Iterable[FullTextUnit]:
    """What an index is built of."""
    for number, text in enumerate(made.texts):
        yield FullTextUnit(
            unit=number, global_step=number // 40, dp_rank=number % 2, status="applied", source="bench",
            document_id=f"d{number}", text=text,
        )  # fmt: skip


def size_of(directory: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def build_rates(made: Corpus, directory: Path, figures: Figures) -> None:
    """The full text, and what stands before it; SQLite FTS5 over the same texts."""
    num = len(made.tokens)
    tokenizer = RunTokenizer(RunReader(made.run_dir))
    decoding = timed(lambda: tokenizer.decode_many(made.segments))
    cutting = timed(lambda: [spaced_terms(text) for text in made.texts])
    text = timed(lambda: build_full_text(directory / "text", units(made), num))
    fts, bytes_of_fts = sqlite_index(made, directory)
    characters = sum(map(len, made.texts)) / num
    print(f"\n{made.name}: {num:,} tokens, {characters:.2f} characters a token")
    print(f"{'':34}{'M tokens/CPU-s':>16}{'bytes/token':>14}")
    for name, seconds, size in (
        ("decoding", decoding, None),
        ("cutting into terms", cutting, None),
        ("full text, with cutting", text, size_of(directory / "text")),
        ("SQLite FTS5, text alone", fts, bytes_of_fts),
    ):
        figures.add(f"{made.name}: {name}", num / seconds, "tokens/CPU-s")
        if size is not None:
            figures.add(f"{made.name}: {name}, for a token", size / num, "bytes")
        print(f"{name:34}{num / seconds / 1e6:>16.2f}{'' if size is None else f'{size / num:.2f}':>14}", flush=True)


def sqlite_index(made: Corpus, directory: Path) -> tuple[float, int]:
    """(CPU-seconds, bytes) of FTS5 with positions and without the text: words, trigrams for Japanese."""
    path = directory / f"{made.name}.sqlite"
    path.unlink(missing_ok=True)
    words = "trigram" if made.name == "japanese" else "unicode61"

    def build() -> None:
        with sqlite3.connect(path) as connection:
            connection.execute(f"CREATE VIRTUAL TABLE t USING fts5(text, content='', tokenize='{words}')")
            connection.executemany("INSERT INTO t(rowid, text) VALUES (?, ?)", enumerate(made.texts, 1))

    return timed(build), path.stat().st_size


def questions(made: Corpus, num: int) -> dict[str, list[tuple[str, str | None, str | None]]]:
    """By kind: (our query, the same for FTS5, a text for a scan), from random places of the texts."""
    chance = random.Random(4)
    steps = len(made.tokens) // LENGTH // SLOTS // WRITERS
    found: dict[str, list[tuple[str, str | None, str | None]]] = {}
    while len(found.get("term", ())) < num:
        index = chance.randrange(len(made.texts))
        terms, ids = terms_of(made.texts[index]), made.segments[index].tolist()
        if len(terms) < 40 or len(ids) < 40:
            continue
        at = chance.randrange(len(terms) - 12)
        width = 4 if made.name == "japanese" else 1
        first, second = ("".join(terms[at + k * width : at + (k + 1) * width]) for k in (0, 1))
        third = "".join(terms[-width:])
        phrase = ("" if width > 1 else " ").join((first, second))
        low = chance.randrange(steps // 2)
        place = chance.randrange(len(ids) - 20)
        for kind, query, peer, scan in (
            ("term", first, f'"{first}"', first),
            ("phrase", f'"{phrase}"', f'"{phrase}"', phrase),
            ("boolean and steps", f"({first} OR {second}) -{third} step:{low}..{low + steps // 4}", None, None),
            ("prefix", f"{first[:3]}*", f"{first[:3]}*" if width == 1 and first.isalnum() else None, None),
            ("fuzzy", f"{first}~1" if len(first) > 3 and width == 1 else first, None, None),
            ("n-gram of 4", f"ids:[{' '.join(map(str, ids[place : place + 4]))}]", None, None),
            ("n-gram of 16", f"ids:[{' '.join(map(str, ids[place : place + 16]))}]", None, None),
            ("n-gram, term and steps", f"ids:[{' '.join(map(str, ids[place : place + 2]))}] {first} step:>{low}", None, None),
        ):  # fmt: skip
            found.setdefault(kind, []).append((query, peer, scan))
    return found


def milliseconds(ask: Callable[[str], object], queries: Iterable[str | None]) -> list[float]:
    """Wall time of each query that there is, the better of two."""
    found = []
    for query in queries:
        times = []
        for _ in range(2 if query is not None else 0):
            started = time.perf_counter()
            ask(str(query))
            times.append((time.perf_counter() - started) * 1e3)
        found += [min(times)] if times else []
    return found


def show(times: list[float]) -> str:
    """p50 and p95."""
    if not times:
        return "–"
    return f"{statistics.median(times):.2f} / {sorted(times)[int(0.95 * (len(times) - 1))]:.2f}"


def latencies(made: Corpus, directory: Path, num: int, figures: Figures) -> None:
    """Print and keep the latencies."""
    reader = IndexReader.open(made.run_dir)
    sqlite = sqlite3.connect(directory / f"{made.name}.sqlite")
    memory = duckdb.connect()
    memory.register("texts", pa.table({"text": [text.lower() for text in made.texts]}))
    memory.execute("CREATE TABLE t AS SELECT * FROM texts")
    search(reader, "a", SearchOptions(facets=True))
    print(f"\n{made.name}: {len(reader.shards)} shard(s); ms, p50 / p95")
    print(f"{'':26}{'kiseki':>18}{'count + facets':>18}{'FTS5':>18}{'DuckDB contains':>18}")
    counting = SearchOptions(limit=0, facets=True)
    for kind, asked in questions(made, num).items():
        ours, peers, scans = zip(*asked, strict=True)
        columns = (
            milliseconds(lambda query: search(reader, query), ours),
            milliseconds(lambda query: search(reader, query, counting), ours),
            milliseconds(lambda query: _fts(sqlite, query), peers),
            milliseconds(lambda text: _scan(memory, text), scans[:8]),
        )
        for peer, times in zip(("kiseki", "count and facets", "FTS5", "DuckDB"), columns, strict=True):
            figures.add(f"{made.name}: {kind}, {peer}, p50", statistics.median(times), "ms")
        print(f"{kind:26}" + "".join(f"{show(times):>18}" for times in columns), flush=True)


def _fts(connection: sqlite3.Connection, query: str) -> tuple[object, ...]:
    best = connection.execute("SELECT rowid FROM t WHERE t MATCH ? ORDER BY rank LIMIT 10", [query]).fetchall()
    return connection.execute("SELECT count(*) FROM t WHERE t MATCH ?", [query]).fetchone(), *best


def _scan(connection: duckdb.DuckDBPyConnection, text: str) -> object:
    return connection.execute("SELECT count(*) FROM t WHERE contains(text, ?)", [text]).fetchone()


def score_errors(made: Corpus, directory: Path, num: int, figures: Figures) -> None:
    """The top ten in one shard and in eight or nine over the same export, with scores corrected and as the engine has them."""
    cut_dir = directory / "cut"
    cut_dir.mkdir()
    (cut_dir / "export").symlink_to((made.run_dir / "export").resolve())
    update_index(cut_dir, IndexOptions(shard_tokens=len(made.tokens) // 8))
    whole, cut = IndexReader.open(made.run_dir), IndexReader.open(cut_dir)
    chance = random.Random(1)
    asked = [" OR ".join(chance.sample(terms_of(chance.choice(made.texts)), 3)) for _ in range(num)]
    best = [{(hit.address, hit.start): hit.score or 0.0 for hit in search(whole, query).hits} for query in asked]
    print(f"\n{made.name}: scores in {len(cut.shards)} shards against {len(whole.shards)}")
    for name, idf in (("corrected", Frequencies.idf), ("as the engine has them", lambda *_: 1.0)):
        with patch.object(Frequencies, "idf", idf):
            found = [{(hit.address, hit.start): hit.score or 0.0 for hit in search(cut, query).hits} for query in asked]
        same = statistics.mean(len(a.keys() & b.keys()) / len(a) for a, b in zip(best, found, strict=True) if a)
        errors = [abs(b[key] / a[key] - 1) for a, b in zip(best, found, strict=True) for key in a.keys() & b.keys()]
        off = f"scores off by {statistics.mean(errors):.2%}, worst {max(errors):.1%}"
        figures.add(f"scores {name}: of the best ten the same", same)
        figures.add(f"scores {name}: off by", statistics.mean(errors))
        print(f"{name:24} of the best ten {same:.0%} the same; {off}")


def main() -> None:
    """Run the benchmark."""
    parser = bench_options(__doc__)
    parser.add_argument("--tokens-millions", type=float, default=20)
    parser.add_argument("--cjk-millions", type=float, default=4)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--dir", type=Path, help="keep the runs here, and take them as they are when they are there")
    arguments = parser.parse_args()
    step = LENGTH * SLOTS * WRITERS
    with tempfile.TemporaryDirectory() as scratch, recorded("fulltext", arguments) as figures:
        directory = arguments.dir or Path(scratch)
        for name, millions in (("english", arguments.tokens_millions), ("japanese", arguments.cjk_millions)):
            num = int(millions * 1e6) // step * step
            if num == 0:
                continue
            run_dir = directory / name
            if not (run_dir / "export").exists() and name == "english":
                export_tokens(run_dir, real_tokens(num, 400_000)[0], TOKENIZER)
            elif not (run_dir / "export").exists():
                export_tokens(run_dir, japanese(num), JAPANESE)
            made = corpus(name, run_dir, figures)
            build_rates(made, Path(scratch), figures)
            latencies(made, Path(scratch), arguments.queries, figures)
            if name == "english":
                score_errors(made, Path(scratch), 2 * arguments.queries, figures)


if __name__ == "__main__":
    main()
