"""Ends: a clean close, an exception, the end of the interpreter, SIGTERM while the main thread hangs in a collective."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from tests.train_hooks.hook.toy import Toy, attach, exported_ids, microbatches, same, train_step
from train_hooks import ExportHook
from train_hooks.export_format.errors import ExportStopped
from train_hooks.export_format.reading.reader import RunReader

ROOT = Path(__file__).parents[3]
PREAMBLE = """
import os, signal, sys, time
from pathlib import Path
import torch
from tests.train_hooks.hook.toy import Toy, attach, microbatches, train_step
from train_hooks.hook.export.exporter import ExporterOptions

model = Toy()
def start(run):
    hook = attach(model, Path(run), options=ExporterOptions(group_interval_s=3600.0))
    for step, batch in enumerate(hook.wrap(microbatches(3)), 1):
        train_step(model, [batch])
        if step < 3:
            hook.commit(step)
    return hook
"""


def _script(body: str, run_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(body), str(run_dir)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def _sealed(run_dir: Path) -> bool:
    return all(log.closed for log in RunReader(run_dir).attempt(1).writers().values())


def test_an_exception_leaves_what_was_committed(tmp_path: Path) -> None:
    model, before = Toy(), signal.getsignal(signal.SIGTERM)

    def train() -> None:
        with attach(model, tmp_path) as hook:
            for step, batch in enumerate(hook.wrap(microbatches(3)), 1):
                train_step(model, [batch])
                hook.commit(step)
                if step == 2:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert same(exported_ids(tmp_path), model.seen)
    assert _sealed(tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not model._forward_pre_hooks


def test_after_close_nothing_is_recorded_and_commit_is_refused(tmp_path: Path) -> None:
    model = Toy()
    hook = attach(model, tmp_path)
    hook.close()
    hook.close()
    train_step(model, list(microbatches(1)))
    with pytest.raises(ExportStopped):
        hook.commit(1)


def test_the_end_of_the_interpreter_seals(tmp_path: Path) -> None:
    job = _script("start(sys.argv[1]); raise RuntimeError('out of memory')", tmp_path)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "out of memory" in errors
    assert len(exported_ids(tmp_path)) == 2
    assert _sealed(tmp_path)


def test_sigterm_while_the_main_thread_hangs_in_a_collective(tmp_path: Path) -> None:
    job = _script(
        """
        import torch.distributed as dist
        hook = start(sys.argv[1])
        store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
        print("hangs", flush=True)
        store.wait(["never"], __import__("datetime").timedelta(seconds=300))
        """,
        tmp_path,
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "hangs\n"
    time.sleep(0.3)
    job.send_signal(signal.SIGTERM)
    started = time.monotonic()
    job.communicate(timeout=60)
    assert time.monotonic() - started < 20
    assert job.returncode == -signal.SIGTERM
    assert len(exported_ids(tmp_path)) == 2
    assert _sealed(tmp_path)


def test_sigterm_with_a_handler_of_the_trainers(tmp_path: Path) -> None:
    job = _script(
        """
        asked = []
        signal.signal(signal.SIGTERM, lambda number, frame: asked.append(hook.acknowledged_step))
        hook = start(sys.argv[1])
        assert hook.acknowledged_step == 0
        os.kill(os.getpid(), signal.SIGTERM)
        while not asked:
            time.sleep(0.01)
        assert asked == [2], asked
        hook.commit(3)
        hook.close()
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(asked) == 2
        print("went on", flush=True)
        """,
        tmp_path,
    )
    output, errors = job.communicate(timeout=60)
    assert (job.returncode, output) == (0, "went on\n"), errors
    assert len(exported_ids(tmp_path)) == 3


def test_sigterm_where_the_wakeup_descriptor_was_taken_and_locks_are_held(tmp_path: Path) -> None:
    job = _script(
        """
        hook = start(sys.argv[1])
        signal.set_wakeup_fd(-1)
        with hook._at_work(), hook._exporter._changed:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        hook.commit(3)
        print("went on", flush=True)
        """,
        tmp_path,
    )
    output, errors = job.communicate(timeout=60)
    assert (job.returncode, output) == (-signal.SIGTERM, ""), errors
    assert len(exported_ids(tmp_path)) == 2
    assert _sealed(tmp_path)


class Pids(torch.utils.data.Dataset[int]):
    """Loader workers that say who they are."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def test_a_signal_to_a_forked_child_stays_there(tmp_path: Path) -> None:
    model = Toy()
    hook: ExportHook
    with attach(Toy(), tmp_path / "another"), attach(model, tmp_path) as hook:
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        for pid in DataLoader(Pids(), num_workers=1, batch_size=None):
            assert pid != os.getpid()
        for step, batch in enumerate(hook.wrap(microbatches(1)), 1):
            train_step(model, [batch])
            hook.commit(step)
    assert same(exported_ids(tmp_path), model.seen)
