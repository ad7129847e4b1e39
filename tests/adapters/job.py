"""What the job scripts share: their arguments, and sizes."""

import os
import signal
import sys
import time
from pathlib import Path

STEPS, ACCUMULATION, MICRO_BATCH, WORKERS = 8, 2, 2, 2
SAVE_EVERY, KILLED_STEP, RESUME_STEP = 3, 6, 3
RANKS = 2
SEQUENCES = STEPS * ACCUMULATION * MICRO_BATCH * RANKS + 8

# CPython gh-112275, mended after 3.11.7: a loader's worker hangs for ever, inside os.fork, where some thread made or ended its
# Python state in that instant. gloo's threads do both after a collective; here they are given the time to.
if sys.version_info < (3, 11, 10):
    os.register_at_fork(before=lambda: time.sleep(0.02))


def overflow_at() -> int | None:
    """The step whose loss is to be so large that its gradients are infinite, in a training in fp16; None in another."""
    return int(os.environ["OVERFLOW_AT"]) if "OVERFLOW_AT" in os.environ else None


def run_dir() -> Path:
    """Where the job writes: the export, its log, its checkpoints."""
    return Path(sys.argv[1])


def rank() -> int:
    """As torchrun tells it."""
    return int(os.environ["RANK"])


def kill_at() -> tuple[int, int] | None:
    """(step, micro-batch) in whose forward this process is to kill itself."""
    text = os.environ.get("KISEKI_TEST_KILL_AT")
    if not text:
        return None
    step, microbatch = text.split(",")
    return int(step), int(microbatch)


def die_together() -> None:
    """What this process starts ends with it; a manager of megatron.core's checkpoints would live on, and hold its output."""
    os.setpgrp()
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(writing)
        os.read(reading, 1)  # until this process is gone, and its loaders' workers
        os.killpg(0, signal.SIGKILL)
