"""The API under load, from another process on this machine: mixed questions at a fixed rate, latencies from when each was due.

    python bench/api_load.py [--run DIR] [--sequences 100000] [--rate 100] [--seconds 60] [--publish 10]

The run holds real tokens of support/real_tokens.py in short sequences, so that there are many; with --run it is kept, and taken
as it is when it is there. With --publish, so many generations are built and published meanwhile by a third process. Requests
go to 127.0.0.1 alone, at most rate x seconds of them. The rate does not wait for answers: a slow server is seen as it is.
"""

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.support.history import Figures, bench_options, recorded
from bench.support.real_tokens import CACHE, TOKENIZER, VOCAB, real_tokens
from indexer.build.update import update_index
from indexer.reader import IndexReader
from train_hooks import Segment
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.exporter import Exporter
from train_hooks.hook.export.staging import StagedMicrobatch

LENGTH, SLOTS, PER_DOCUMENT = 20, 256, 30
IN_FLIGHT = 200
MAX_REQUESTS = 100_000
Question: TypeAlias = tuple[str, str, str, dict[str, Any] | None]


def export(run_dir: Path, rows: np.ndarray, last_step: int) -> int:
    """Write rows [n, LENGTH] as steps of one writer after `last_step`; returns the new last step."""
    file_system = OsFileSystem()
    spec = RunSpec(sequence_length=LENGTH, vocab_size=VOCAB, tokenizer=TOKENIZER, config={}, run_id="load")
    run = open_or_create_run(file_system, run_dir, spec)
    resume = None
    if last_step:
        resume = ResumeToken(run_id="load", attempt=len(RunReader(run_dir).attempts()), global_step=last_step)
    attempt = claim_attempt(file_system, run_dir, run, num_writers=1, resume=resume, config={})
    secret = RunReader(run_dir).secret()
    writer = RankWriter(file_system, ExportPaths(run_dir).attempt_dir(attempt.attempt), run, attempt, 0)
    with Exporter(writer, run, attempt, 0, secret) as exporter:
        for step in range(len(rows) // SLOTS):
            first = step * SLOTS
            segments = [[_segment(first + slot)] for slot in range(SLOTS)]
            exporter.stage(StagedMicrobatch(tokens=rows[first : first + SLOTS].astype(np.int64), segments=segments))
            exporter.commit(last_step + step + 1, metrics={"loss": 1.0})
    return last_step + len(rows) // SLOTS


def _segment(row: int) -> Segment:
    document, part = divmod(row, PER_DOCUMENT)
    return Segment(
        start=0,
        length=LENGTH,
        source=f"s{document % 7}",
        document_id=f"d{document}",
        document_token_offset=part * LENGTH,
    )


@contextmanager
def server(run_dir: Path) -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its URL and process id."""
    code = "from ui.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", str(run_dir), "--port", "0", "--api-only"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            match = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            if match is None:
                raise SystemExit("the server did not start")
            _wait(match[0])
            yield match[0], process.pid
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            memory = re.search(r"VmRSS:\s+(\d+) kB", status)
            print(f"server: {int(memory[1]) / 1024:.0f} MB resident" if memory else "")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait(url: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            if httpx.get(url + "/readyz").status_code == 200:
                return
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def questions(reader: IndexReader, num: int) -> list[Question]:
    """(kind, method, path, body): texts of about 45 tokens for traces, n-grams of 3, two words, pages of 20 hits, addresses."""
    chance, decode = np.random.default_rng(1), reader.tokenizer.decode
    found: list[Question] = []
    for index in range(num):
        shard = reader.shards[int(chance.integers(len(reader.shards)))]
        ordinals = chance.integers(0, shard.info.num_sequences, 3)
        rows = [shard.tokens(int(ordinal)) for ordinal in ordinals]
        gram = rows[0][5:8].tolist()
        kind = index % 10
        if kind < 3:
            text = decode(np.concatenate([rows[0][4:], rows[1][:16], rows[2][8:]]))
            found.append(("trace", "POST", "/v1/trace", {"text": text}))
        elif kind < 6:
            found.append(("count", "POST", "/v1/count", {"token_ids": gram}))
        elif kind < 7:
            found.append(("search", "POST", "/v1/search", {"query": _words(decode(rows[0]))}))
        elif kind < 8:
            found.append(("hits", "POST", "/v1/hits", {"token_ids": gram, "limit": 20}))
        else:
            found.append(("sequence", "GET", f"/v1/sequences/{shard.address(int(ordinals[0]))}", None))
    return found


def _words(text: str) -> str:
    """Two words of a text, both wanted."""
    words = re.findall(r"[a-zA-Z]{3,12}", text)
    return " AND ".join(f'"{word}"' for word in words[:2]) or '"the"'


async def load(url: str, pid: int, asked: list[Question], rate: float, figures: Figures) -> None:
    """Ask at the rate, print a table, and keep its figures."""
    times: dict[str, list[float]] = defaultdict(list)
    statuses: Counter[str] = Counter()
    limits = httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
    free = asyncio.Semaphore(IN_FLIGHT)  # waiting in the client's pool costs it more than the server's answer
    cpu_s = _cpu_s(pid)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
        began = time.perf_counter()

        async def ask(index: int) -> None:
            kind, method, path, body = asked[index]
            due = began + index / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            try:
                async with free:
                    response = await client.request(method, path, json=body)
                statuses["ok" if response.is_success else str(response.status_code)] += 1
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1
            times[kind].append((time.perf_counter() - due) * 1e3)

        await asyncio.gather(*(ask(index) for index in range(len(asked))))
        took_s = time.perf_counter() - began
    server_ms = (_cpu_s(pid) - cpu_s) / len(asked) * 1e3
    figures.add("requests that succeeded", statuses["ok"] / len(asked))
    figures.add("CPU time of the server for a request", server_ms, "ms")
    print(
        f"{len(asked):,} requests in {took_s:.1f} s ({len(asked) / took_s:.0f} a second): {dict(statuses)}; "
        f"{server_ms:.1f} CPU-ms of the server each"
    )
    print(f"  {'kind':9} {'number':>7} {'p50':>8} {'p95':>8} {'p99':>8} {'slowest':>8}  ms from when each was due")
    for kind, all_ms in [*sorted(times.items()), ("all", [ms for part in times.values() for ms in part])]:
        percentiles = [float(np.percentile(all_ms, share)) for share in (50, 95, 99, 100)]
        cells = [f"{value:8.1f}" for value in percentiles]
        figures.add(f"{kind}, p50", percentiles[0], "ms")
        figures.add(f"{kind}, p99", percentiles[2], "ms")
        print(f"  {kind:9} {len(all_ms):7,} {' '.join(cells)}")


def publish(run_dir: Path, num: int) -> None:
    """Add ten steps and publish a generation, `num` times."""
    last_step = IndexReader.open(run_dir).shards[-1].info.last_step
    tokens, _ = real_tokens(num * 10 * SLOTS * LENGTH, 400_000)
    rows = tokens.reshape(num, 10 * SLOTS, LENGTH)
    for number in range(num):
        last_step = export(run_dir, rows[number], last_step)
        report = update_index(run_dir)
        print(f"  published generation {report.generation}: steps to {report.last_step}", flush=True)


def bench(run_dir: Path, options: argparse.Namespace, figures: Figures) -> None:
    """Make the run where it is not there, start the server, and load it."""
    if not (run_dir / "export").exists():
        num = options.sequences // SLOTS * SLOTS
        tokens, _ = real_tokens(num * LENGTH, 400_000)
        started = time.perf_counter()
        export(run_dir, tokens.reshape(num, LENGTH), 0)
        print(f"exported {num:,} sequences in {time.perf_counter() - started:.0f} s", flush=True)
    started = time.perf_counter()
    report = update_index(run_dir)
    print(
        f"{report.num_sequences:,} sequences, {report.num_tokens:,} tokens in {report.num_shards} shards, indexed in "
        f"{time.perf_counter() - started:.0f} s",
        flush=True,
    )
    num = min(MAX_REQUESTS, int(options.rate * options.seconds))
    asked = questions(IndexReader.open(run_dir), num)
    with server(run_dir) as (url, pid):
        asyncio.run(load(url, pid, asked[: max(1, num // 10)], options.rate, Figures()))
        if not options.publish:
            asyncio.run(load(url, pid, asked, options.rate, figures))
            return
        command = [sys.executable, __file__, "--run", str(run_dir), "--only-publish", str(options.publish)]
        with subprocess.Popen(command) as publisher:
            asyncio.run(load(url, pid, asked, options.rate, figures))
            publisher.wait()


def main() -> None:
    """Entry point."""
    parser = bench_options(__doc__)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--sequences", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--publish", type=int, default=0)
    parser.add_argument("--only-publish", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_publish:
        publish(options.run, options.only_publish)
        return
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name, recorded("api_load", options) as figures:
        bench(options.run or Path(name) / "run", options, figures)


if __name__ == "__main__":
    main()
