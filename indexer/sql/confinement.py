"""What a process gives up before it runs a stranger's SQL. Linux alone; nothing here can be taken back.

`give_up_files`, with Landlock (Linux 5.13 and later, where it is on): no file can be opened but those listed, for reading,
and no TCP connection be made. It holds for the thread that calls and for those that it starts later, so it comes first.
`give_up_resources`: address space (what is there now and so many bytes more), no file larger than 0 bytes, no core dump,
no new process or thread.
"""

import ctypes
import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["allow_cpu_s", "give_up_files", "give_up_resources"]

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_PR_SET_NO_NEW_PRIVS = 38
_RULE_PATH_BENEATH = 1
_READ_FILE = 1 << 2
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # by Landlock's ABI
_TCP_RIGHTS = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64), ("handled_access_net", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def give_up_resources(memory_bytes: int) -> None:
    """Take no more than `memory_bytes` beyond what there is. Raises OSError where a limit cannot be set."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + memory_bytes,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def allow_cpu_s(cpu_s: float) -> None:
    """Let the process use so much more CPU time; then the kernel kills it, whoever else forgot to."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + cpu_s) + 1, resource.RLIM_INFINITY))


def give_up_files(readable: Iterable[Path]) -> bool:
    """Open no file but those, for reading; whether this kernel has Landlock. Raises OSError where a file is not there."""
    libc = ctypes.CDLL(None, use_errno=True)
    abi = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if abi < 1:  # an older kernel, or Landlock is off
        return False
    rights = _FILE_RIGHTS[max(known for known in _FILE_RIGHTS if known <= abi)]
    ruleset = _Ruleset(rights, _TCP_RIGHTS)
    size = ctypes.sizeof(ruleset) if abi >= 4 else ctypes.sizeof(ctypes.c_uint64)
    fd = _checked(libc.syscall(_CREATE_RULESET, ctypes.byref(ruleset), size, 0))
    for file in readable:
        with _opened(file) as file_fd:
            rule = _PathBeneath(_READ_FILE, file_fd)
            _checked(libc.syscall(_ADD_RULE, fd, _RULE_PATH_BENEATH, ctypes.byref(rule), 0))
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(libc.syscall(_RESTRICT_SELF, fd, 0))
    os.close(fd)
    return True


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
