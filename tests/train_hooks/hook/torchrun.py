"""Starting a script of these tests on several ranks of this machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[3]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    script: Path, arguments: Sequence[object], *, num_ranks: int, **variables: str
) -> list[subprocess.Popen[str]]:
    """One process a rank, each killable by itself, with what torchrun would put into their environment."""
    port = str(free_port())
    return [
        _start_rank(script, arguments, {**_environment(rank, num_ranks, port), **variables})
        for rank in range(num_ranks)
    ]


def _start_rank(script: Path, arguments: Sequence[object], variables: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        cwd=ROOT, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        process_group=0,
    )  # fmt: skip


def _environment(rank: int, num_ranks: int, port: str) -> Mapping[str, str]:
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        "PYTHONFAULTHANDLER": "1",
    }  # fmt: skip


def where_it_hangs(ranks: Sequence[subprocess.Popen[str]]) -> str:
    """Ends ranks made by `start`, and their loaders' workers: what they printed, and the stack of every thread."""
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.pid, signal.SIGABRT)
    return "\n".join(rank.communicate(timeout=30)[0] for rank in ranks if not (rank.stdout and rank.stdout.closed))


def run(script: Path, arguments: Sequence[object], *, num_ranks: int, timeout_s: float = 120) -> None:
    """With torchrun itself; fails the test with the job's output where it fails."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks),
        "--master-addr", "127.0.0.1", "--master-port", str(free_port()), str(script), *map(str, arguments),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
