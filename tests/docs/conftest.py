"""The demo run of the docs: the sequences of `kiseki demo`, consumed by a far smaller model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from indexer.build.update import update_index
from tests.docs.markdown import ROOT


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `demo-run`. The data order depends on corpus and seed alone, so addresses and counts are the demo's."""
    directory = tmp_path_factory.mktemp("docs")
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
            "--nproc-per-node", "2", str(ROOT / "examples" / "train_fsdp.py"), "--run-dir", "demo-run",
            "--corpus", str(ROOT / "examples" / "corpus"), "--layers", "1", "--width", "8", "--heads", "1",
        ],
        cwd=directory, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    update_index(directory / "demo-run")
    return directory
