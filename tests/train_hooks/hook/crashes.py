"""Real crashes: kill -9 of one rank or of all of a real FSDP2 job, again and again, with resume from its checkpoints.

    python -m tests.train_hooks.hook.crashes --crashes 25

The job is `examples/train_fsdp.py` with prefetching workers; the model itself logs what its forwards got. In the end the
canonical export must say, byte for byte and by the attempt that did it, what the last execution of each forward got.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import torch

from tests.train_hooks.hook.torchrun import ROOT, start
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.replay import ReplayDataset

RANKS, ACCUMULATION = 2, 2
SIZES = {
    "--sequence-length": 64, "--vocab-size": 512, "--layers": 1, "--width": 32, "--heads": 1, "--micro-batch": 2,
    "--accumulation": ACCUMULATION, "--num-workers": 1, "--log-every": 1000,
}  # fmt: skip
Key = tuple[int, int, int]


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What the crashes came to."""

    num_crashes: int = 0
    num_attempts: int = 0
    num_forwards: int = 0
    num_superseded: int = 0
    problems: list[str] = field(default_factory=list)


def crash_and_compare(work: Path, *, num_crashes: int, steps: int, checkpoint_every: int, seed: int) -> Outcome:
    """Run the job to its end, killing it `num_crashes` times on the way, and compare export and log."""
    rng = random.Random(seed)
    outcome = Outcome()
    arguments = _arguments(work, steps, checkpoint_every)
    while True:
        crash = outcome.num_crashes < num_crashes
        ranks = start(
            ROOT / "examples" / "train_fsdp.py", arguments, num_ranks=RANKS,
            KISEKI_EXAMPLE_CONSUMED_LOG=str(work / "log"), TORCH_GLOO_LAZY_INIT="0",
        )  # fmt: skip
        reader = _Output(ranks)
        killed = crash and _crash(ranks, work, rng, steps, num_left=num_crashes - outcome.num_crashes)
        codes = [rank.wait(timeout=600) for rank in ranks]
        outcome.num_crashes += killed
        if any(codes) and not killed:
            outcome.problems.append(f"the job failed by itself: {reader.text()}")
            return outcome
        if not any(codes):
            break
    _compare(work, steps, outcome)
    return outcome


def _arguments(work: Path, steps: int, checkpoint_every: int) -> list[object]:
    sizes = [part for option, value in SIZES.items() for part in (option, value)]
    return [
        "--run-dir", work / "run", "--corpus", _small_corpus(work), "--steps", steps,
        "--checkpoint-every", checkpoint_every, *sizes,
    ]  # fmt: skip


def _small_corpus(work: Path) -> Path:
    """One small source, so that a restart is quick."""
    corpus = work / "corpus"
    if not corpus.exists():
        corpus.mkdir(parents=True)
        source = min((ROOT / "examples" / "corpus").glob("*.jsonl.gz"), key=lambda path: path.stat().st_size)
        (corpus / source.name).write_bytes(source.read_bytes())
    return corpus


def _crash(ranks: Sequence[Popen[str]], work: Path, rng: random.Random, steps: int, num_left: int) -> bool:
    """Wait for a random moment, kill one rank or all, then whoever is left hanging. False where the job ended before."""
    begun = _num_logged(work)
    # The crashes that are still to come share the steps that are left.
    target = begun + rng.randrange(1, max(2, 2 * (steps * ACCUMULATION - begun) // (num_left + 1)))
    while _num_logged(work) < target and all(rank.poll() is None for rank in ranks):
        time.sleep(0.002)
    time.sleep(rng.random() * 0.05)
    if any(rank.poll() is not None for rank in ranks):
        return False
    for victim in ranks if rng.random() < 0.5 else [rng.choice(list(ranks))]:
        _kill(victim)
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
        time.sleep(0.02)
    for rank in ranks:
        _kill(rank)
    return True


def _kill(rank: Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(rank.pid, signal.SIGKILL)


def _num_logged(work: Path) -> int:
    log = work / "log" / "rank0.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


class _Output:
    """What the ranks print, kept for a failure; read by threads so that no pipe fills."""

    def __init__(self, ranks: Sequence[Popen[str]]) -> None:
        self._lines: list[str] = []
        for rank in ranks:
            threading.Thread(target=self._read, args=(rank,), daemon=True).start()

    def _read(self, rank: Popen[str]) -> None:
        assert rank.stdout is not None
        with rank.stdout:
            self._lines.extend(rank.stdout)

    def text(self) -> str:
        return "".join(self._lines[-40:])


def _logged(work: Path) -> tuple[dict[Key, dict[str, Any]], int]:
    """(step, dp_rank, microbatch) → the last forward of it, and how many earlier ones there were."""
    last: dict[Key, dict[str, Any]] = {}
    num_superseded = 0
    for rank in range(RANKS):
        for line in (work / "log" / f"rank{rank}.jsonl").read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # cut by a kill
                continue
            key = (record["step"], rank, record["microbatch"])
            num_superseded += key in last
            last[key] = record
    return last, num_superseded


def _compare(work: Path, steps: int, outcome: Outcome) -> None:
    logged, outcome.num_superseded = _logged(work)
    run = RunReader(work / "run")
    outcome.num_attempts = len(run.attempt_numbers())
    outcome.num_forwards = len(logged)
    resumed_from = {attempt.info.attempt: attempt.info.resume_step for attempt in run.attempts()}
    found: set[Key] = set()
    for dp_rank in range(RANKS):
        for part in ReplayDataset(work / "run", dp_rank=dp_rank):
            key = (part.global_step, dp_rank, part.microbatch)
            found.add(key)
            expected = logged.get(key)
            if expected is None:
                outcome.problems.append(f"{key}: exported, never fed to the model")
            elif resumed_from[part.addresses[0].attempt] != expected["resumed_from"]:
                outcome.problems.append(f"{key}: exported from another attempt than the last one that ran it")
            elif not _equal(part.batch, expected):
                outcome.problems.append(f"{key}: the export differs from what the forward got")
    if found != {
        (step, rank, index) for step in range(1, steps + 1) for rank in range(RANKS) for index in range(ACCUMULATION)
    }:
        outcome.problems.append(f"{len(found)} micro-batches exported, expected {steps * RANKS * ACCUMULATION}")
    if found != logged.keys():
        outcome.problems.append(f"exported and logged differ in {sorted(found ^ logged.keys())[:5]}")


def _equal(batch: dict[str, torch.Tensor], expected: dict[str, Any]) -> bool:
    same_inputs = torch.equal(batch["input_ids"], torch.tensor(expected["input_ids"]))
    return same_inputs and torch.equal(batch["labels"][:, -1], torch.tensor(expected["last_label"]))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Kill a real FSDP job at random and compare its export with its log.")
    parser.add_argument("--crashes", type=int, default=25)
    parser.add_argument("--steps", type=int, default=0, help="0: eight steps a crash")
    parser.add_argument("--checkpoint-every", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="directory for run and log; default: a temporary one")
    options = parser.parse_args()
    steps = options.steps or 8 * (options.crashes + 1)
    with tempfile.TemporaryDirectory() as temporary:
        outcome = crash_and_compare(
            options.work or Path(temporary), num_crashes=options.crashes, steps=steps,
            checkpoint_every=options.checkpoint_every, seed=options.seed,
        )  # fmt: skip
    print(
        f"{outcome.num_crashes} crashes, {outcome.num_attempts} attempts, {outcome.num_forwards} forwards that count, "
        f"{outcome.num_superseded} superseded, {len(outcome.problems)} differences"
    )
    for problem in outcome.problems[:20]:
        print(f"  {problem}")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
