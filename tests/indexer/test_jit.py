"""Compiled kernels and the modules that they were compiled from."""

import os
import subprocess
import sys
import time
from pathlib import Path

import indexer.spans
from indexer.jit import forget_older

MODULE = "from indexer.jit import jit\n"


def test_a_kernel_is_compiled_again_after_what_it_calls_has_changed(tmp_path: Path) -> None:
    """numba alone would go on with the old leaf: its caller's module has not changed."""
    caller = MODULE + "from leaf import leaf\n@jit\ndef call(n):\n    return leaf(n)\nprint(call(1))\n"
    (tmp_path / "caller.py").write_text(caller)
    root = str(Path(indexer.spans.__file__).parents[2])
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}

    def answer(added: int) -> str:
        (tmp_path / "leaf.py").write_text(MODULE + f"@jit\ndef leaf(n):\n    return n + {added}\n")
        command = [sys.executable, "-c", "import caller"]
        path = {**environment, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"}
        return subprocess.run(command, env=path, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert answer(1) == "2\n" and list((tmp_path / "__pycache__").glob("caller.*.nbi"))
    assert answer(2) == "3\n"


def test_only_older_ones_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").mkdir()
    now = time.time() + 1  # after the modules of this installation were written
    for age, name in enumerate(["__pycache__/old.nbi", "__pycache__/old.1.nbc", "module.py", "__pycache__/new.nbi"]):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, times=(now + age, now + age))
    forget_older(tmp_path)
    assert [path.name for path in (tmp_path / "__pycache__").iterdir()] == ["new.nbi"]
