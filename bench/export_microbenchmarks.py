"""The exporter's own figures, in one process: training thread, writer thread, memory, checkpoint barrier.

    python bench/export_microbenchmarks.py

The micro-batch is 8 × 4,096 int64 tokens with labels in memory of their own, as a DataLoader's collate makes them.
"""

import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.support.history import bench_options, recorded
from train_hooks import ExportHook
from train_hooks.hook.export.exporter import ExporterOptions

SLOTS, LENGTH, VOCAB = 8, 4096, 50_304
Figures = dict[str, float]
Batch = dict[str, Tensor]


class Nothing(nn.Module):
    """A model whose forward costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        return self.weight


def rss_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def batch() -> Batch:
    """A fresh micro-batch."""
    tokens = torch.randint(VOCAB, (SLOTS, LENGTH + 1))
    return {"input_ids": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}


def attach(run_dir: Path, model: nn.Module, **options: Any) -> ExportHook:
    """The hook with these sizes."""
    return ExportHook.attach(
        model, run_dir, sequence_length=LENGTH, vocab_size=VOCAB, config={}, options=ExporterOptions(**options)
    )


def training_thread(run_dir: Path, *, cold: bool, num: int = 600) -> Figures:
    """Microseconds that fetch, forward and commit take more than without the hook, for a step of one micro-batch.

    cold: a matrix product of 5 ms before each, which takes the caches, as in a real step; else back to back.
    """
    model, bare = Nothing(), Nothing()
    hook = attach(run_dir, model)
    source = iter(lambda: batch(), None)
    tagged: Any = iter(hook.wrap(source))
    thrash = torch.randn(500, 500)
    parts: dict[str, list[int]] = {"fetch": [], "forward": [], "commit": [], "sum": []}
    cpu: list[int] = []
    clock = time.perf_counter_ns
    for step in range(1, num + 1):
        held = next(source)
        tagged._loader = iter([held])  # the batch is made outside of what is timed
        if cold:
            thrash @ thrash
        busy = time.thread_time_ns()
        times = [clock()]
        fetched = next(tagged)
        times.append(clock())
        model(**fetched)
        times.append(clock())
        hook.commit(step, metrics={"loss": 0.0})
        times.append(clock())
        cpu.append(time.thread_time_ns() - busy)
        bare(**fetched)
        times.append(clock())
        fetch, forward, commit, nothing = (b - a for a, b in itertools.pairwise(times))
        for name, value in (("fetch", fetch), ("forward", forward - nothing), ("commit", commit)):
            parts[name].append(value)
        parts["sum"].append(fetch + forward - nothing + commit)
        if step % 20 == 0:  # at least as often as the writer thread does by itself, in a real training
            hook.checkpoint_barrier(step)
    hook.close()
    kind = "caches cold" if cold else "back to back"
    figures = {f"training thread, {kind}, {name}, median µs": statistics.median(v) / 1e3 for name, v in parts.items()}
    figures[f"training thread, {kind}, sum, median µs of its CPU time"] = statistics.median(cpu) / 1e3
    return figures


def writer_thread(run_dir: Path, num: int = 100) -> Figures:
    """What the writer thread does in a second, from the first staged micro-batch to the last acknowledgement."""
    model = Nothing()
    hook = attach(run_dir, model, max_queue_bytes=256 << 20, group_interval_s=0.0)
    fetched = list(hook.wrap([batch() for _ in range(20)]))
    hook.forget_fetched()
    cpu: list[float] = []
    begin, process = time.perf_counter(), time.process_time()
    main = time.thread_time()
    for step in range(1, num + 1):
        for again in hook.wrap([fetched[step % 20]]):
            model(**again)
        hook.commit(step)
    hook.checkpoint_barrier(num)
    wall = time.perf_counter() - begin
    cpu.append(time.process_time() - process - (time.thread_time() - main))
    hook.close()
    tokens = num * SLOTS * LENGTH
    return {
        "writer thread, million tokens a second of its CPU time": tokens / cpu[0] / 1e6,
        "writer thread, million tokens a second of wall clock": tokens / wall / 1e6,
    }


def memory(run_dir: Path, seconds: float = 6.0) -> Figures:
    """Peak growth of this process while the trainer commits faster than the writer thread writes, the queue at its limit."""
    model = Nothing()
    torch.optim.SGD(model.parameters())  # as every optimizer, it loads torch's compiler, which is not the exporter's
    held = [batch() for _ in range(4)]
    before = peak = rss_bytes()
    hook = attach(run_dir, model)
    deadline, step = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        step += 1
        for fetched in hook.wrap(held):
            model(**fetched)
        hook.commit(step)
        peak = max(peak, rss_bytes())
    hook.close()
    return {"memory of the exporter, queue full, MiB": (peak - before) / 2**20}


def barrier(run_dir: Path, num: int = 40) -> Figures:
    """Latency of `checkpoint_barrier` for one step that was just committed, and with nothing to do."""
    model = Nothing()
    hook = attach(run_dir, model, group_interval_s=3600.0)
    busy, idle = [], []
    for step in range(1, num + 1):
        for fetched in hook.wrap([batch()]):
            model(**fetched)
        hook.commit(step)
        busy.append(_seconds(lambda step=step: hook.checkpoint_barrier(step)))  # type: ignore[misc]
        idle.append(_seconds(lambda step=step: hook.checkpoint_barrier(step)))  # type: ignore[misc]
    hook.close()
    sync = _fdatasync(run_dir)
    return {
        "fdatasync of 64 KiB, median ms": sync * 1e3,
        "barrier, nothing to do, median ms": statistics.median(idle) * 1e3,
        "barrier, one step just committed, median ms": statistics.median(busy) * 1e3,
        "barrier, one step just committed, in fdatasyncs": statistics.median(busy) / sync,
    }


def _seconds(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _fdatasync(directory: Path) -> float:
    descriptor = os.open(directory / "probe", os.O_CREAT | os.O_WRONLY)
    times = []
    for _ in range(50):
        os.write(descriptor, b"x" * 65_536)
        times.append(_seconds(lambda: os.fdatasync(descriptor)))
    os.close(descriptor)
    return statistics.median(times)


def measure(disk: Path | None) -> Figures:
    """All of it."""
    torch.set_num_threads(1)
    figures: Figures = {}
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        base = Path(directory)
        figures.update(memory(base / "memory"))
        figures.update(training_thread(base / "hot", cold=False))
        figures.update(training_thread(base / "cold", cold=True))
        figures.update(writer_thread(base / "writer"))
        figures.update(barrier(base / "barrier"))
    assert threading.active_count() == 1
    return figures


def main() -> None:
    """Measure and print."""
    options = bench_options(__doc__).parse_args()
    with recorded("export_microbenchmarks", options) as figures:
        for name, value in measure(None).items():
            figures.add(name, value)
            print(f"{name:<60} {value:>14,.4f}")


if __name__ == "__main__":
    main()
