"""A run directory that cannot be written: an error in words, on every rank."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.train_hooks.hook.toy import Toy, attach
from train_hooks.export_format.errors import ExportStopped
from train_hooks.hook.collectives import on_every_rank, on_first_rank

ROOT = Path(__file__).parents[4]


def test_a_run_directory_below_a_file(tmp_path: Path) -> None:
    """The error was Python's own."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportStopped, match=r"file.run: Not a directory \(ENOTDIR\); give the training another run"):
        attach(Toy(), tmp_path / "file" / "run")
    with pytest.raises(ExportStopped, match=r"Not a directory \(ENOTDIR\)"):
        attach(Toy(), tmp_path / "file")


_ON_A_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.train_hooks.hook.toy import Toy, attach
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    attach(Toy(), Path(sys.argv[1]))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _ON_A_FULL_DISK, str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert ended.returncode == 1
    assert "ExportStopped: " in ended.stderr
    assert "File too large (EFBIG)" in ended.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB, where one can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    (small_disk / "file").write_bytes(bytes(16 << 10))
    with pytest.raises(ExportStopped, match=r"No space left on device \(ENOSPC\); free space"):
        attach(Toy(), small_disk / "run")


def test_a_read_only_disk(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ExportStopped, match=r"disk/run: Read-only file system \(EROFS\); .*may write"):
        attach(Toy(), small_disk / "run")


@pytest.mark.parametrize("together", [on_first_rank, on_every_rank])
def test_errors_of_the_disk_name_the_path_and_what_to_do(together: Any, tmp_path: Path) -> None:
    def fail(error: Exception) -> Any:
        def work() -> None:
            raise error

        return work

    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(
        ExportStopped, match="^" + str(tmp_path) + r": No space left on device \(ENOSPC\); free"
    ) as caught:
        together(fail(full), path=tmp_path)
    assert caught.value.__cause__ is full
    with pytest.raises(ExportStopped, match=r"^/a/b: Permission denied \(EACCES\); "):
        together(fail(PermissionError(errno.EACCES, "Permission denied", "/a/b")), path=tmp_path)
    with pytest.raises(OSError, match=r"^no error of the system's$"):
        together(fail(OSError("no error of the system's")), path=tmp_path)
    assert together(lambda: 3) == 3
