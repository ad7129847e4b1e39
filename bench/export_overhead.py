"""What the export hook costs a training: the same job with and without it, on two ranks.

    python bench/export_overhead.py                  # blocks of steps with and without the hook, in one process
    python bench/export_overhead.py --pairs 3        # whole processes as well, alternately with and without

A GPT with FSDP2 over gloo trains in blocks of steps: without, with, with, without the hook, and so on, so that the
machine's drift cancels. A block's last step is followed by the flush of the export, which the block's total includes.
Beside the wall clock the CPU time of the process is compared, writer thread included: it does not depend on who else
uses the machine. Then the exporter's own figures are taken in `export_microbenchmarks`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.export_microbenchmarks import Figures, measure, rss_bytes
from bench.support.history import bench_options, recorded
from train_hooks import ExportHook

VOCAB = 8_192
MODES = ("off", "on", "on", "off")


@dataclass(kw_only=True, slots=True)
class Blocks:
    """Seconds of each step, and of whole blocks, in one mode."""

    steps: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


class Block(nn.Module):
    """Attention and MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, 64).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """Next-token loss; the embedding is shared with the head."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.RMSNorm(width)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        logits = nn.functional.linear(self.norm(x), self.embed.weight)
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def loader(options: argparse.Namespace) -> Iterator[dict[str, Tensor]]:
    """Micro-batches without end, the labels in memory of their own, as most collates make them."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    while True:
        tokens = torch.randint(VOCAB, (options.micro_batch, options.sequence_length + 1), generator=generator)
        yield {"input_ids": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}


class Job:
    """One rank of the training."""

    def __init__(self, options: argparse.Namespace, run_dir: Path) -> None:
        torch.manual_seed(0)
        self.options = options
        model = GPT(options.width, options.layers)
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.batches = loader(options)
        self.hook: ExportHook | None = None
        self.run_dir, self.step_number = run_dir, 0

    def attach(self) -> None:
        """Make the hook; it listens only in blocks with it."""
        self.hook = ExportHook.attach(
            self.model, self.run_dir, sequence_length=self.options.sequence_length, vocab_size=VOCAB, config={}
        )
        self.tagged = iter(self.hook.wrap(self.batches))

    def block(self, mode: str, blocks: Blocks) -> None:
        """Some steps in one mode, timed."""
        on = mode == "on"
        if self.hook is not None:
            self.hook.listen(self.model if on else None)
        dist.barrier()
        times = []
        begin, cpu = time.perf_counter(), time.process_time()
        for _ in range(self.options.block):
            started = time.perf_counter()
            self.step(on)
            times.append(time.perf_counter() - started)
        if on and self.hook is not None:
            self.hook.checkpoint_barrier(self.step_number)
        blocks.totals.append(time.perf_counter() - begin)
        blocks.cpu.append(time.process_time() - cpu)
        blocks.steps += times
        blocks.medians.append(statistics.median(times))

    def step(self, on: bool) -> None:
        """One optimizer update of `accumulation` micro-batches."""
        source = self.tagged if on else self.batches
        for _ in range(self.options.accumulation):
            batch = next(source)
            self.model(**batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if on and self.hook is not None:
            self.step_number += 1
            self.hook.commit(self.step_number, metrics={"loss": 0.0})


def run_rank(options: argparse.Namespace) -> None:
    """What each rank does; rank 0 prints the result as JSON."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    job = Job(options, Path(options.run_dir))
    job.block("off", Blocks())  # warm-up
    if options.only != "off":
        job.attach()
        job.block("on", Blocks())
    results = {"on": Blocks(), "off": Blocks()}
    for index in range(options.blocks * 2):
        mode = options.only or MODES[index % 4]
        job.block(mode, results[mode])
    report: dict[str, Any] = {"num_parameters": job.num_parameters, "rss_bytes": rss_bytes(), "modes": {}}
    for mode, blocks in results.items():
        report["modes"][mode] = {
            "steps": blocks.steps, "medians": blocks.medians, "totals": blocks.totals, "cpu": blocks.cpu,
        }  # fmt: skip
    if job.hook is not None:
        job.hook.close()
        files = sum(file.stat().st_size for file in Path(options.run_dir).rglob("rows-r00000-*"))
        report["bytes_a_token"] = files / (job.step_number * options.accumulation * _tokens(options))
    dist.barrier()
    dist.destroy_process_group()
    if int(os.environ["RANK"]) == 0:
        Path(options.result).write_text(json.dumps(report), encoding="utf-8")


def _tokens(options: argparse.Namespace) -> int:
    return int(options.micro_batch * options.sequence_length)


def launch(options: argparse.Namespace, only: str | None) -> dict[str, Any]:
    """The job by torchrun; what its rank 0 found."""
    with tempfile.TemporaryDirectory(dir=options.disk) as directory:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__,
            *(f"--{name.replace('_', '-')}={getattr(options, name)}" for name in _JOB_OPTIONS),
            f"--run-dir={directory}/run", f"--result={directory}/result.json",
        ]  # fmt: skip
        subprocess.run(
            [*command, *([f"--only={only}"] if only else [])], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        found: dict[str, Any] = json.loads(Path(directory, "result.json").read_text(encoding="utf-8"))
        return found


def _quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def compare(report: dict[str, Any]) -> dict[str, Any]:
    """With the hook over without it."""
    on, off = report["modes"]["on"], report["modes"]["off"]
    pairs = [a / b for a, b in zip(on["medians"], off["medians"], strict=True)]
    return {
        "parameters": report["num_parameters"],
        "steps in each mode": len(on["steps"]),
        "step time without, median s": statistics.median(off["steps"]),
        "step time ratio, median of all": statistics.median(on["steps"]) / statistics.median(off["steps"]),
        "step time ratio, median of block pairs": statistics.median(pairs),
        "step time ratio, p99": _quantile(on["steps"], 0.99) / _quantile(off["steps"], 0.99),
        "block time ratio, flush included": sum(on["totals"]) / sum(off["totals"]),
        "CPU time ratio, writer thread included": sum(on["cpu"]) / sum(off["cpu"]),
        "bytes a token on disk, before compaction, short rows": report["bytes_a_token"],
    }


def main() -> None:
    """Entry point."""
    parser = bench_options("Measure what the export hook costs a training.")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--block", type=int, default=5, help="steps of a block (%(default)s)")
    parser.add_argument("--blocks", type=int, default=20, help="blocks in each mode (%(default)s)")
    parser.add_argument("--pairs", type=int, default=0, help="whole processes with and without, so many times")
    parser.add_argument("--disk", type=Path, help="directory on the disk to measure; default: the temporary one")
    parser.add_argument("--json", action="store_true")
    for name in ("only", "run-dir", "result"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(options)
        return
    figures: dict[str, Any] = compare(launch(options, None))
    for number in range(options.pairs):
        pair = {only: launch(options, only) for only in ("off", "on")}
        medians = {only: statistics.median(report["modes"][only]["steps"]) for only, report in pair.items()}
        figures[f"whole processes, pair {number + 1}, median ratio"] = medians["on"] / medians["off"]
        grown = pair["on"]["rss_bytes"] - pair["off"]["rss_bytes"]
        figures[f"whole processes, pair {number + 1}, memory with minus without, MiB"] = grown / 2**20
    own: Figures = measure(options.disk)
    figures.update(own)
    with recorded("export_overhead", options) as kept:
        for name, value in figures.items():
            kept.add(name, value)
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:<60} {value:>14,.4f}" if isinstance(value, float) else f"{name:<60} {value:>14,}")


_JOB_OPTIONS = ("width", "layers", "micro_batch", "sequence_length", "accumulation", "block", "blocks")

if __name__ == "__main__":
    main()
