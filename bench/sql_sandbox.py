"""What the sandbox for strangers' SQL costs: queries against an in-process read-only connection to the same catalog.

    python bench/sql_sandbox.py RUN [--repeats 200]

RUN is an indexed run (`make demo` makes one). Prints p50 and p95 for a worker that is there, for an ordinary connection,
and for a process of its own each time; then how far beyond its deadline a query is ended.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.support.history import Figures, bench_options, recorded
from indexer.reader import IndexReader
from indexer.sql.limits import SqlLimitError, SqlLimits
from indexer.sql.sandbox import SqlSandbox, run_untrusted

QUERIES = {
    "SELECT 1": "SELECT 1",
    "one step": "SELECT * FROM steps WHERE global_step = 1",
    "all steps": "SELECT * FROM steps ORDER BY global_step",
    "sources": "SELECT source, count(*), sum(length) FROM segments GROUP BY ALL ORDER BY 2 DESC",
    "10,000 rows": "SELECT range, hash(range) AS h, 'text ' || range AS t FROM range(10000)",
}
BOMB = "SELECT count(*) FROM range(10000000) a, range(10000000) b"


def times_ms(action: Callable[[], object], repeats: int) -> tuple[float, float]:
    """(p50, p95)."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken), statistics.quantiles(taken, n=20)[-1]


def main() -> None:
    """Print the table."""
    parser = bench_options(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    with recorded("sql_sandbox", arguments) as figures:
        bench(arguments, figures)


def bench(arguments: argparse.Namespace, figures: Figures) -> None:
    """Print and keep what the sandbox adds to each query."""
    reader = IndexReader.open(arguments.run)
    print(f"{'query':14} {'in process p50':>15} {'p95':>8} {'sandbox p50':>12} {'p95':>8} {'adds':>8}")
    with SqlSandbox(reader, SqlLimits(deadline_s=60)) as sandbox, reader.catalog() as connection:
        connection.execute("SET threads = 1")
        sandbox.run("SELECT 1")
        for name, sql in QUERIES.items():
            plain = times_ms(lambda sql=sql: connection.sql(sql).to_arrow_table(), arguments.repeats)  # type: ignore[misc]
            boxed = times_ms(lambda sql=sql: sandbox.run(sql), arguments.repeats)  # type: ignore[misc]
            figures.add(f"{name}, in process, p50", plain[0], "ms")
            figures.add(f"{name}, sandbox, p50", boxed[0], "ms")
            print(
                f"{name:14} {plain[0]:12.2f} ms {plain[1]:5.2f} ms {boxed[0]:9.2f} ms {boxed[1]:5.2f} ms "
                f"{boxed[0] - plain[0]:5.2f} ms"
            )
    start = times_ms(lambda: run_untrusted(reader, "SELECT 1", SqlLimits(deadline_s=60)), 10)
    figures.add("a process of its own, p50", start[0], "ms")
    print(f"a process of its own for SELECT 1: p50 {start[0]:.0f} ms, p95 {start[1]:.0f} ms")
    late = []
    with SqlSandbox(reader, SqlLimits(deadline_s=1.0)) as sandbox:
        for _ in range(10):
            started = time.perf_counter()
            try:
                sandbox.run(BOMB)
            except SqlLimitError:
                late.append((time.perf_counter() - started - 1.0) * 1000)
    figures.add("ended after its deadline by, at most", max(late), "ms")
    print(f"ended after its deadline of 1 s by: p50 {statistics.median(late):.0f} ms, at most {max(late):.0f} ms")


if __name__ == "__main__":
    main()
